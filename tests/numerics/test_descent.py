"""What the steps do over a whole run: descend, find a rank, stay orthonormal."""

import pytest
import torch

from cases import factors, matrix, normal
from rankwise.numerics.factors import orthonormality_defect
from rankwise.numerics.init import zero_core
from rankwise.numerics.retract import cut, displaced
from rankwise.numerics.tangent import project
from rankwise.numerics.truncate import rank_for_tolerance


def quadratic(m, n, target, draw):
    """Loss and gradient of `||A (W - T) B||^2 / 2`, and its Lipschitz constant `L`."""
    A = matrix(m, m, torch.linspace(1.0, 0.5, m, dtype=torch.float64), draw)
    B = matrix(n, n, torch.linspace(2.0, 1.0, n, dtype=torch.float64), draw)

    def loss(W):
        return 0.5 * (A @ (W - target) @ B).square().sum()

    def gradient(W):
        return A.mT @ (A @ (W - target) @ B) @ B.mT

    return loss, gradient, 4.0


@pytest.mark.parametrize("smallest", [1.0, 1e-4, 1e-8])
@pytest.mark.parametrize("m, n, r", [(7, 5, 2), (40, 30, 8)])
def test_the_loss_falls_in_every_step_however_small_the_singular_values(m, n, r, smallest, draw):
    sigma = torch.logspace(0, torch.tensor(smallest).log10().item(), r, dtype=torch.float64)
    f = factors(m, n, sigma, draw)
    target = matrix(m, n, torch.linspace(2, 1, r, dtype=torch.float64), draw)
    loss, gradient, L = quadratic(m, n, target, draw)
    losses = [loss(f.dense())]
    for _ in range(300):
        f = cut(displaced(f, project(f, gradient(f.dense())), lambda core: 1 / L * core), r)
        losses.append(loss(f.dense()))
    assert all(after <= before + 1e-15 for before, after in zip(losses, losses[1:], strict=False))
    assert losses[-1] < 1e-6 * losses[0]


@pytest.mark.parametrize("start", [2, 32])
def test_the_rank_of_the_target_is_found_from_below_and_from_above(start, draw):
    target = matrix(40, 32, torch.linspace(2, 1, 5, dtype=torch.float64), draw)
    f = factors(40, 32, torch.full((start,), 0.1, dtype=torch.float64), draw)
    for step in range(1, 121):
        spectrum = displaced(f, project(f, f.dense() - target), lambda core: 0.5 * core)
        if step % 20 == 0:
            rank = rank_for_tolerance(spectrum.sigma[: f.rank], rtol=1e-2)
        else:
            rank = f.rank + 1 if step % 20 == 1 and f.rank < 32 else f.rank
        f = cut(spectrum, rank)
    assert f.rank == 5
    assert (f.dense() - target).norm() < 1e-6 * target.norm()


@pytest.mark.parametrize("rank", [1, 3, 30])
def test_bases_stay_orthonormal_over_a_thousand_float32_steps(rank, draw):
    f = zero_core(40, 30, rank, like=torch.empty(0), generator=draw)
    target = normal(40, 30, draw=draw).float()
    for step in range(1000):
        noise = normal(40, 30, draw=draw).float() * (10.0 ** (step % 7 - 3))
        gradient = (f.dense() - target + noise).bfloat16().float()
        f = cut(displaced(f, project(f, gradient), lambda core: 1e-2 * core), rank)
    assert orthonormality_defect(f.U) < 1e-5
    assert orthonormality_defect(f.V) < 1e-5
    assert f.S.isfinite().all()


def test_a_target_of_higher_rank_is_approximated_as_well_as_its_svd_does(draw):
    target = matrix(7, 5, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64), draw)
    like = torch.empty(0, dtype=torch.float64)
    f = zero_core(7, 5, 2, like=like, generator=draw)
    for _ in range(400):
        f = cut(displaced(f, project(f, f.dense() - target), lambda core: 0.3 * core), 2)
    best = torch.linalg.svdvals(target)[2]
    assert float((f.dense() - target).norm()) == pytest.approx(float(best), rel=1e-6)
