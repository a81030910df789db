"""Tucker kernels as points: the definition, HOSVD, random starts, and what is refused."""

import pytest
import torch

from cases import close, normal
from rankwise.numerics.factors import orthonormality_defect
from rankwise.numerics.init import truncated_svd
from rankwise.numerics.tucker import (
    Tucker,
    check_tucker,
    hosvd,
    unit_cores,
    variance_preserving_tucker,
)
from tucker_kernels import CORES, KERNELS, kernel_of, modes, tail, tucker

each_kernel = pytest.mark.parametrize("case", KERNELS, ids=str)
each_core = pytest.mark.parametrize("core", CORES)


@each_kernel
def test_the_dense_kernel_is_the_definition(case, draw):
    f = tucker(*case, draw)
    close(f.dense(), kernel_of(f.core, f.U, f.V))
    close(f.norm(), f.dense().norm())
    close(f.scaled(-0.5).dense(), -0.5 * f.dense())


@each_core
@each_kernel
def test_unit_cores_hold_the_row_spaces_of_both_modes(case, core, draw):
    f = tucker(*case, draw, core)
    for unit, matrix in zip(map(modes, unit_cores(f.core)), enumerate(modes(f.core)), strict=True):
        mode, rows = matrix
        basis = unit[mode].mT
        assert orthonormality_defect(basis) < 1e-13
        close(rows @ basis @ basis.mT, rows)


@each_kernel
def test_modes_count_all_numbers_of_the_factors(case, draw):
    f = tucker(*case, draw)
    assert sum(m.rank * m.cost for m in f.modes()) == sum(t.numel() for t in f)
    for mode, matrix in zip(f.modes(), modes(f.dense()), strict=True):
        assert mode.rank == torch.linalg.matrix_rank(matrix)


@pytest.mark.parametrize("core", ["generic", "rank 1", "zero"])
@pytest.mark.parametrize("ranks", [(2, 3), (3, 2), (5, 4)])
def test_the_distance_is_that_of_the_dense_kernels(ranks, core, draw):
    a, b = tucker(7, 5, (3, 2), (3, 2), draw), tucker(7, 5, (3, 2), ranks, draw, core)
    close(a.distance(b), (a.dense() - b.dense()).norm())
    close(b.distance(a), a.distance(b))
    assert a.distance(a) < 1e-14


@pytest.mark.parametrize("sweeps", [0, 1, 3])
@each_core
@each_kernel
def test_hosvd_recovers_a_kernel_of_these_ranks(case, core, sweeps, draw):
    f = tucker(*case, draw, core)
    g = hosvd(f.dense(), f.ranks, sweeps=sweeps)
    close(g.dense(), f.dense())
    assert max(orthonormality_defect(g.U), orthonormality_defect(g.V)) < 1e-13


@pytest.mark.parametrize("ranks", [(1, 1), (3, 2), (2, 4), (7, 3), (7, 5)])
def test_hosvd_is_within_its_bound_and_sweeps_never_hurt(ranks, draw):
    W = normal(7, 5, 3, 2, draw=draw)
    errors = [(hosvd(W, ranks, sweeps=n).dense() - W).norm() for n in range(4)]
    tails = torch.stack([tail(X, r) for X, r in zip(modes(W), ranks, strict=True)])
    assert errors[0] <= tails.norm() + 1e-12
    assert errors[0] >= tails.max() - 1e-12
    assert all(b <= a + 1e-12 for a, b in zip(errors, errors[1:], strict=False))
    if 1 < ranks[0] < 7:
        assert errors[1] < errors[0] - 1e-6


def test_a_kernel_of_one_place_is_a_matrix(draw):
    W = normal(7, 5, 1, 1, draw=draw)
    close(hosvd(W, (3, 3)).dense()[:, :, 0, 0], truncated_svd(W[:, :, 0, 0], 3).dense())


@pytest.mark.parametrize("gain", [1.0, 2**0.5])
@each_kernel
def test_a_random_start_preserves_variance(case, gain, draw):
    out_channels, in_channels, kernel, ranks = case
    like = torch.empty(0, dtype=torch.float64)
    f = variance_preserving_tucker(
        out_channels, in_channels, kernel, ranks, gain=gain, generator=draw, like=like
    )
    assert f.ranks == ranks and f.checked() is f
    assert max(orthonormality_defect(f.U), orthonormality_defect(f.V)) < 1e-13
    # E ||W x||^2 = ||W||^2 for patches of independent entries of variance one.
    close(f.dense().square().sum() / out_channels, torch.tensor(gain**2, dtype=torch.float64))
    sigma = torch.linalg.svdvals(f.core.flatten(1))
    close(sigma, sigma.mean().expand_as(sigma))


def test_what_is_no_kernel_is_refused(draw):
    U, core, V = tucker(7, 5, (3, 2), (3, 2), draw)
    with pytest.raises(ValueError, match="U and V matrices, core 4-dim, got .*core \\(3, 2, 6\\)"):
        check_tucker(Tucker(U, core.flatten(2), V))
    with pytest.raises(ValueError, match="floating-point"):
        check_tucker(Tucker(U.long(), core, V))
    with pytest.raises(ValueError, match=r"core \(p, q, kh, kw\), V \(in, q\); got U \(7, 2\)"):
        check_tucker(Tucker(U[:, :2], core, V))
    with pytest.raises(ValueError, match="finite"):
        check_tucker(Tucker(U, core * float("nan"), V))
    with pytest.raises(ValueError, match=r"kh \* kw = 2, got \(5, 2\)"):
        hosvd(normal(7, 5, 2, 1, draw=draw), (5, 2))
    for ranks in ((8, 2), (3, 6), (0, 1)):
        with pytest.raises(ValueError, match=r"up to the channels, \(7, 5\)"):
            hosvd(normal(7, 5, 3, 3, draw=draw), ranks)
