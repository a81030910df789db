"""Bases: orthonormal whatever the input, with the old one kept and the new one spanned."""

import pytest
import torch

from cases import SHAPES, SHAPES_AND_RANKS, close, normal, orthonormal, projector
from rankwise.numerics.factors import orthonormality_defect
from rankwise.numerics.orth import augment, orthonormalise


def generic(U, draw):
    return normal(*U.shape, draw=draw)


def inside(U, draw):
    return U @ normal(U.shape[1], U.shape[1], draw=draw)


def zero(U, draw):
    return torch.zeros_like(U)


def equal_columns(U, draw):
    return normal(U.shape[0], 1, draw=draw).expand_as(U)


def one_new_direction(U, draw):
    new = normal(U.shape[0], 1, draw=draw) @ normal(1, U.shape[1], draw=draw)
    return inside(U, draw) + 1e-9 * new


def tiny(U, draw):
    return 1e-30 * normal(*U.shape, draw=draw)


def huge(U, draw):
    return 1e25 * normal(*U.shape, draw=draw)


def graded(U, draw):
    return normal(*U.shape, draw=draw) * torch.logspace(0, -30, U.shape[1], dtype=U.dtype)


KINDS = [generic, inside, zero, equal_columns, one_new_direction, tiny, huge, graded]
SPANNED = [generic, equal_columns, tiny, huge, graded]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m, n, r", SHAPES_AND_RANKS)
def test_an_augmented_basis_is_orthonormal_and_begins_with_the_old_one(kind, m, n, r, draw):
    U = orthonormal(m, r, draw)
    U_hat = augment(U, kind(U, draw))
    assert U_hat.shape == (m, min(m, 2 * r))
    assert orthonormality_defect(U_hat) < 1e-13
    close(U_hat[:, :r], U, 1e-13)


@pytest.mark.parametrize("kind", SPANNED)
@pytest.mark.parametrize("m, n, r", SHAPES_AND_RANKS)
def test_an_augmented_basis_spans_what_was_added_column_by_column(kind, m, n, r, draw):
    U = orthonormal(m, r, draw)
    X = kind(U, draw)
    X = X / X.abs().amax(0)
    assert (X - projector(augment(U, X)) @ X).abs().max() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m, n", SHAPES)
def test_a_float32_basis_is_orthonormal_too(kind, m, n, draw):
    U = orthonormal(m, 3, draw).float()
    assert orthonormality_defect(augment(U, kind(U.double(), draw).float())) < 2e-6


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-20, 1.0, 1e20, 1e30, 1e38])
def test_the_size_of_a_float32_gradient_does_not_change_the_span(size, draw):
    U = orthonormal(40, 3, draw).float()
    X = normal(40, 3, draw=draw).float()
    X = X / X.abs().max()
    P = projector(augment(U, X * size).double())
    assert (X - P @ X.double()).abs().max() < 1e-5


def test_rounding_errors_of_the_old_basis_are_mended(draw):
    U = orthonormal(40, 4, draw) + 1e-6 * normal(40, 4, draw=draw)
    assert orthonormality_defect(augment(U, normal(40, 4, draw=draw))) < 1e-13


def test_signs_are_those_of_the_input_not_of_the_factorisation(draw):
    X = orthonormal(9, 4, draw)
    close(orthonormalise(X), X)
    close(orthonormalise(-X), -X)


def test_a_wide_matrix_gives_a_square_basis(draw):
    Q = orthonormalise(normal(4, 9, draw=draw))
    assert Q.shape == (4, 4)
    assert orthonormality_defect(Q) < 1e-14


def test_bases_are_contiguous_as_files_and_sharding_need_them(draw):
    assert orthonormalise(normal(7, 2, draw=draw)).is_contiguous()
