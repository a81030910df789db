"""Matrices that nobody would choose: what is promised of all matrices holds for these."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.numerics.factors import Factors, check_factors, orthonormality_defect
from rankwise.numerics.fingerprint import Likeness, fingerprint, likeness
from rankwise.numerics.orth import augment, orthonormalise
from rankwise.numerics.retract import truncate
from rankwise.numerics.rounding import from_product
from rankwise.numerics.truncate import rank_above, rank_for_tolerance

KINDS = ("zero", "random", "repeated", "one entry", "denormal", "mixed scales", "rank one")
SIZES = st.sampled_from([(1, 1), (1, 9), (9, 1), (2, 2), (5, 3), (3, 5), (2000, 2), (2, 2000)])


@st.composite
def matrices(draw, sizes=SIZES, dtype=torch.float64, top=30):
    (m, n), kind = draw(sizes), draw(st.sampled_from(KINDS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    X = torch.randn(m, n, generator=generator, dtype=torch.float64)
    scale = 10.0 ** draw(st.integers(-top, top))
    if kind == "zero":
        X = torch.zeros(m, n)
    elif kind == "repeated":
        X = X[:, :1].expand(m, n)
    elif kind == "one entry":
        X = torch.zeros(m, n).index_put((torch.tensor(m - 1), torch.tensor(0)), torch.tensor(1.0))
    elif kind == "denormal":
        X, scale = X, 1e-40
    elif kind == "mixed scales":
        X = X * torch.logspace(-30, 0, n, dtype=torch.float64)
    elif kind == "rank one":
        X = X[:, :1] @ X[:1]
    return (scale * X.double()).to(dtype).contiguous()


@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-5), (torch.float64, 1e-13)], ids=str)
def test_bases_are_orthonormal_whatever_they_are_made_of(dtype, most):
    @settings(max_examples=60)
    @given(matrices(dtype=dtype))
    def check(X):
        Q = orthonormalise(X)
        assert Q.shape == (len(X), min(X.shape))
        assert float(orthonormality_defect(Q)) < most
        U = orthonormalise(torch.eye(len(X), 1, dtype=dtype))
        A = augment(U, X)
        assert A.shape == (len(X), min(len(X), 1 + X.shape[1]))
        assert float(orthonormality_defect(A)) < most
        assert torch.allclose(A[:, :1], U, atol=10 * most)

    check()


@given(
    matrices(st.sampled_from([(9, 3), (3, 3), (1, 4)])),
    matrices(st.sampled_from([(3, 9), (3, 3), (4, 1)])),
)
def test_a_product_is_its_factors(B, A):
    if B.shape[1] != A.shape[0]:
        return
    f = from_product(B, A)
    check_factors(f)
    W = B @ A
    # Products of columns of all sizes cancel up to the rounding of the largest.
    size = float((B.abs().amax(0) * A.abs().amax(1)).amax()) if B.numel() else 0.0
    assert float((f.dense() - W).abs().amax()) <= 1e-12 * size


@given(matrices(st.sampled_from([(1, 1), (4, 4), (6, 6)])), st.integers(1, 6))
def test_a_cut_is_the_best_of_its_rank(S, rank):
    r = len(S)
    f = Factors(torch.eye(r + 2, r, dtype=S.dtype), S, torch.eye(r, dtype=S.dtype))
    rank = min(rank, r)
    cut = truncate(f, rank)
    sigma = torch.linalg.svdvals(S)
    assert cut.rank == rank
    assert float(orthonormality_defect(cut.U)) < 1e-12
    error = float(torch.linalg.vector_norm((cut.dense() - f.dense()) / sigma[0].clamp_min(1e-300)))
    rest = float(torch.linalg.vector_norm(sigma[rank:] / sigma[0].clamp_min(1e-300)))
    assert math.isclose(error, rest, rel_tol=1e-6, abs_tol=1e-12)


SPECTRA = st.lists(
    st.sampled_from([0.0, 5e-324, 1e-300, 1e-38, 1.0, 1.0, 1e38, 1e300]), min_size=1, max_size=6
)


@given(SPECTRA, st.sampled_from([0.0, 1e-12, 0.1, 0.99]))
def test_ranks_stay_in_their_bounds_for_every_spectrum(values, rtol):
    sigma = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    for rule in (rank_for_tolerance, rank_above):
        assert 1 <= rule(sigma, rtol=rtol) <= len(sigma)


@given(matrices(dtype=torch.float32))
def test_a_fingerprint_knows_its_matrix_again(W):
    mark = fingerprint(W)
    assert mark is not None
    assert likeness(mark, fingerprint(W.clone())) is Likeness.SAME
    other = fingerprint(2 * W + 1)
    assert likeness(mark, other) is Likeness.OTHER


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_factors_that_are_not_finite_are_refused(bad, place):
    parts = [torch.eye(3, 2), torch.eye(2), torch.eye(4, 2)]
    parts[place][0, 0] = bad
    with pytest.raises(ValueError, match="finite"):
        check_factors(Factors(*parts))


def test_a_rank_above_both_sides_is_refused():
    with pytest.raises(ValueError, match=r"rank 3 exceeds min\(m, n\) = 2"):
        check_factors(Factors(torch.ones(2, 3), torch.eye(3), torch.ones(5, 3)))
