"""Approximation in the metric of a loss: optimal, exact at full rank, safe on deficient data."""

import pytest
import torch

from cases import SPECTRA, close, matrix, normal
from rankwise.numerics.factors import orthonormality_defect
from rankwise.numerics.init import truncated_svd
from rankwise.numerics.weighted import damped, stack_triangle, weighted_svd

M, N = 7, 5


def triangle(n: int, draw) -> torch.Tensor:
    return torch.linalg.qr(normal(3 * n, n, draw=draw)).R


def test_stacked_rows_give_the_triangle_of_all(draw):
    X = normal(23, N, draw=draw)
    R = None
    for part in X.split([1, 4, 9, 9]):
        R = stack_triangle(R, part)
    close(R.mT @ R, X.mT @ X, 1e-11)
    assert R.shape == (N, N)


def test_a_triangle_of_deficient_rows_keeps_what_a_gram_matrix_loses(draw):
    # Columns that differ by 1e-10: the Gram matrix in float64 is singular to working precision.
    x = normal(50, 1, draw=draw)
    X = torch.cat([x, x + 1e-10 * normal(50, 1, draw=draw)], 1)
    ratio = torch.linalg.svdvals(stack_triangle(None, X))
    exact = torch.linalg.svdvals(X)
    close(ratio[1] / exact[1], torch.ones((), dtype=ratio.dtype), 1e-4)


@pytest.mark.parametrize("rank", [1, 3, N])
def test_the_error_is_the_discarded_tail_and_no_other_matrix_of_that_rank_beats_it(rank, draw):
    W, L, R = normal(M, N, draw=draw), triangle(M, draw), triangle(N, draw)
    found = weighted_svd(W, L, R)
    f = found.cut(rank)
    error = torch.linalg.matrix_norm(L @ (W - f.dense()) @ R.mT)
    close(error, found.sigma[rank:].norm(), 1e-10)
    close(found.sigma, torch.linalg.svdvals(L @ W @ R.mT), 1e-12)
    assert float(orthonormality_defect(f.U)) < 1e-12
    assert float(orthonormality_defect(f.V)) < 1e-12
    plain = truncated_svd(W, rank).dense()
    assert error <= torch.linalg.matrix_norm(L @ (W - plain) @ R.mT) + 1e-12


def test_without_weights_it_is_the_truncated_svd(draw):
    W = normal(M, N, draw=draw)
    eye = torch.eye(M, dtype=W.dtype), torch.eye(N, dtype=W.dtype)
    close(weighted_svd(W, *eye).cut(2).dense(), truncated_svd(W, 2).dense(), 1e-12)


def test_inputs_that_never_occur_do_not_matter_and_need_no_inverse(draw):
    W, L = normal(M, N, draw=draw), triangle(M, draw)
    X = normal(40, 2, draw=draw) @ normal(2, N, draw=draw)
    f = weighted_svd(W, L, stack_triangle(None, X)).cut(2)
    close(X @ f.dense().mT, X @ W.mT, 1e-11)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_weights_of_any_spectrum_are_cut_to_orthonormal_finite_factors(spectrum, draw):
    W = matrix(M, N, SPECTRA[spectrum](3), draw)
    f = weighted_svd(W, triangle(M, draw), triangle(N, draw)).cut(3)
    assert float(orthonormality_defect(f.U)) < 1e-12
    close(f.dense(), W, 1e-10)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e12])
def test_damping_adds_its_part_of_the_mean_to_every_direction(size, draw):
    X = normal(3, N, draw=draw) * size
    R = damped(stack_triangle(None, X), 0.1)
    mean = X.square().sum() / N
    close(R.mT @ R, X.mT @ X + 0.1 * mean * torch.eye(N, dtype=X.dtype), 1e-10)
    assert bool((R.diagonal() != 0).all())
