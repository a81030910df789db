"""Factors of products and sums."""

import pytest
import torch

from cases import SHAPES_AND_RANKS, SPECTRA, close, factors, normal
from rankwise.numerics.factors import orthonormality_defect
from rankwise.numerics.rounding import from_product, weighted_sum


def check(f, W: torch.Tensor, rank: int) -> None:
    close(f.dense(), W)
    assert f.rank == rank
    assert torch.equal(f.S, torch.diag(f.S.diagonal()))
    assert max(map(orthonormality_defect, (f.U, f.V))) < 1e-13


@pytest.mark.parametrize("m, n", [(7, 5), (5, 7), (6, 6), (1, 4), (1, 1)])
@pytest.mark.parametrize("k", [1, 3, 9])
def test_a_product_is_factored_at_its_rank(draw, m, n, k):
    B, A = normal(m, k, draw=draw), normal(k, n, draw=draw)
    check(from_product(B, A), B @ A, min(m, n, k))


def test_directions_that_a_product_does_not_have_are_left_out(draw):
    B, A = normal(8, 3, draw=draw), normal(3, 6, draw=draw)
    padded = torch.cat([B, B.new_zeros(8, 4)], 1), torch.cat([A, A.new_zeros(4, 6)])
    check(from_product(*padded), B @ A, 3)
    check(from_product(torch.cat([B, B], 1), torch.cat([A, A])), 2 * B @ A, 3)
    check(from_product(torch.cat([B, B], 1), torch.cat([A, -A])), 0 * B @ A, 1)
    check(from_product(0 * B, A), 0 * B @ A, 1)


@pytest.mark.parametrize("size", [1e-150, 1e-8, 1e8, 1e150])
def test_sides_of_unlike_sizes_lose_nothing(draw, size):
    """`B A` does not change where a column of `B` grows as the row of `A` shrinks."""
    B, A = normal(8, 3, draw=draw), normal(3, 6, draw=draw)
    scales = torch.tensor([size, 1.0, 1 / size], dtype=torch.float64)
    check(from_product(B * scales, A / scales[:, None]), B @ A, 3)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES_AND_RANKS)
def test_a_sum_is_that_of_the_matrices(draw, shape, spectrum):
    m, n, r = shape
    f, g = (factors(m, n, SPECTRA[spectrum](r), draw) for _ in range(2))
    total = weighted_sum([(0.7, f), (-2.0, g)])
    close(total.dense(), 0.7 * f.dense() - 2.0 * g.dense())
    assert 1 <= total.rank <= min(2 * r, m, n)
    assert weighted_sum([(1.0, f), (-1.0, f)]).dense().count_nonzero() == 0


def test_a_sum_of_float32_is_computed_in_float64(draw):
    f = factors(9, 7, SPECTRA["generic"](3), draw)
    half = type(f)(*(t.float() for t in f))
    total = weighted_sum([(1.0, half), (1.0, half)])
    exact = 2 * (half.U.double() @ half.S.double() @ half.V.double().mT)
    close(total.dense(), exact)
