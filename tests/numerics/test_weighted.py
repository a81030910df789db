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


def decomposed(W, L, R):
    """By the shorter side, as a calibration does it, for any triangles `L` and `R`."""
    if W.shape[0] > W.shape[1]:
        return weighted_svd(W.mT, R, L @ W, tall=True)
    return weighted_svd(W, L, R @ W.mT)


@pytest.mark.parametrize("shape", [(M, N), (N, M), (N, N)])
@pytest.mark.parametrize("rank", [1, 3, N])
def test_the_error_is_the_discarded_tail_and_no_other_matrix_of_that_rank_beats_it(
    rank, shape, draw
):
    m, n = shape
    W, L, R = normal(m, n, draw=draw), triangle(m, draw), triangle(n, draw)
    found = decomposed(W, L, R)
    f = found.cut(rank)
    assert f.shape == found.shape == shape
    error = torch.linalg.matrix_norm(L @ (W - f.dense()) @ R.mT)
    close(error, found.sigma[rank:].norm(), 1e-10)
    close(found.sigma[:N], torch.linalg.svdvals(L @ W @ R.mT), 1e-11)
    assert float(orthonormality_defect(f.U)) < 1e-12
    assert float(orthonormality_defect(f.V)) < 1e-12
    plain = truncated_svd(W, rank).dense()
    assert error <= torch.linalg.matrix_norm(L @ (W - plain) @ R.mT) + 1e-12


def test_without_weights_it_is_the_truncated_svd(draw):
    W = normal(M, N, draw=draw)
    eye = torch.eye(M, dtype=W.dtype), torch.eye(N, dtype=W.dtype)
    close(decomposed(W, *eye).cut(2).dense(), truncated_svd(W, 2).dense(), 1e-12)


def test_inputs_that_never_occur_do_not_matter_and_need_no_inverse(draw):
    W, L = normal(N, M, draw=draw), triangle(N, draw)
    X = normal(40, 2, draw=draw) @ normal(2, M, draw=draw)
    f = decomposed(W, L, stack_triangle(None, X)).cut(2)
    close(X @ f.dense().mT, X @ W.mT, 1e-10)


@pytest.mark.parametrize("shape", [(M, N), (N, M)])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_weights_of_any_spectrum_are_cut_to_orthonormal_finite_factors(spectrum, shape, draw):
    m, n = shape
    W = matrix(m, n, SPECTRA[spectrum](3), draw)
    f = decomposed(W, triangle(m, draw), triangle(n, draw)).cut(3)
    assert float(orthonormality_defect(f.U)) < 1e-12
    close(f.dense(), W, 1e-10)


@pytest.mark.parametrize("size", [0.0, 1e-12, 1.0, 1e12])
def test_damping_adds_to_every_direction(size, draw):
    X = normal(3, N, draw=draw) * size**0.5
    added = torch.tensor(0.1 * size, dtype=X.dtype)
    R = damped(stack_triangle(None, X), added)
    close(R.mT @ R, X.mT @ X + added * torch.eye(N, dtype=X.dtype), 1e-10)
    assert bool((R.diagonal() != 0).all())
