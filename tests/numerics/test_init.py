"""Where factors start."""

import pytest
import torch

from cases import SHAPES_AND_RANKS, SPECTRA, close, matrix, normal
from rankwise.numerics.factors import check_factors, orthonormality_defect
from rankwise.numerics.init import truncated_svd, variance_preserving, zero_core
from rankwise.numerics.tangent import project, squared_norm

LIKE = torch.empty(0, dtype=torch.float64)


@pytest.mark.parametrize("start", [zero_core, variance_preserving])
@pytest.mark.parametrize("m, n, r", SHAPES_AND_RANKS)
def test_a_start_has_orthonormal_bases_of_the_type_asked_for(start, m, n, r, draw):
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        f = check_factors(start(m, n, r, generator=draw, like=LIKE.to(dtype)))
        assert (f.shape, f.rank) == ((m, n), r)
        assert {t.dtype for t in f} == {dtype}
        assert orthonormality_defect(f.U) < tolerance and orthonormality_defect(f.V) < tolerance


@pytest.mark.parametrize("start", [zero_core, variance_preserving])
def test_a_start_is_decided_by_its_generator(start):
    one, same, other = (
        start(7, 5, 3, generator=torch.Generator().manual_seed(seed), like=LIKE)
        for seed in (1, 1, 2)
    )
    assert torch.equal(one.U, same.U) and torch.equal(one.V, same.V)
    assert not torch.allclose(one.U, other.U)


@pytest.mark.parametrize("m, n, r", SHAPES_AND_RANKS)
def test_a_zero_core_is_the_zero_function_without_a_dead_start(m, n, r, draw):
    f = zero_core(m, n, r, generator=draw, like=LIKE)
    assert not f.dense().any()
    G = normal(m, n, draw=draw)
    assert squared_norm(project(f, G)) > 1e-3 * G.square().sum() * r / min(m, n)


@pytest.mark.parametrize("gain", [1.0, 2.0**0.5])
@pytest.mark.parametrize("m, n, r", SHAPES_AND_RANKS)
def test_a_variance_preserving_start_preserves_the_variance(gain, m, n, r, draw):
    f = variance_preserving(m, n, r, gain=gain, generator=draw, like=LIKE)
    close(f.dense().square().sum() / m, torch.tensor(gain**2, dtype=torch.float64))
    x = normal(20000, n, draw=draw)
    measured = (x @ f.dense().mT).square().mean() / x.square().mean()
    assert float(measured) == pytest.approx(gain**2, rel=0.05)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("m, n, r", SHAPES_AND_RANKS)
def test_the_truncated_svd_has_the_error_of_eckart_and_young(spectrum, m, n, r, draw):
    sigma = SPECTRA[spectrum](min(m, n))
    W = matrix(m, n, sigma, draw)
    f = truncated_svd(W, r)
    close((W - f.dense()).norm(), sigma[r:].norm(), 1e-13)
    close(f.S, torch.diag(sigma[:r]), 1e-13)
    assert orthonormality_defect(f.U) < 1e-13 and orthonormality_defect(f.V) < 1e-13
    assert f.U.is_contiguous() and f.V.is_contiguous()


@pytest.mark.parametrize("rank", [0, -1, 6])
@pytest.mark.parametrize(
    "start",
    [
        lambda rank: zero_core(7, 5, rank, like=LIKE),
        lambda rank: variance_preserving(7, 5, rank, like=LIKE),
        lambda rank: truncated_svd(torch.ones(7, 5), rank),
    ],
)
def test_a_rank_that_the_shape_does_not_allow_is_refused(start, rank):
    with pytest.raises(ValueError, match=rf"between 1 and min\(m, n\) = 5, got {rank}"):
        start(rank)
