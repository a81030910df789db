"""The server's step: independent of bases, of the length asked for, equal in all directions."""

import copy

import pytest
import torch

from federations import federation, heterogeneous, low_rank, weight
from rankwise.federated import FeDLRT, MeanStep, SpectralStep, run


def matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=draw, dtype=torch.float64)


def test_the_mean_step_is_the_mean():
    assert torch.equal(MeanStep().core(matrix(4, 4, 0), matrix(4, 4, 1), 3), matrix(4, 4, 1))


@pytest.mark.parametrize("shape", [(4, 4), (6, 4), (4, 6), (1, 1)])
def test_all_directions_of_the_change_get_one_length(shape):
    S, M = matrix(*shape, 0), matrix(*shape, 1)
    change = SpectralStep(lr=0.3).core(S, M, 0) - S
    torch.testing.assert_close(change.norm(), 0.3 * S.norm())
    sigma = torch.linalg.svdvals(change)
    torch.testing.assert_close(sigma, sigma[:1].expand_as(sigma))
    assert float((change * (M - S)).sum()) > 0


def test_it_does_not_depend_on_the_bases():
    S, M = matrix(5, 5, 0), matrix(5, 5, 1)
    P, Q = (torch.linalg.qr(matrix(5, 5, seed)).Q for seed in (2, 3))
    step = SpectralStep(lr=0.2)
    torch.testing.assert_close(step.core(P @ S @ Q, P @ M @ Q, 0), P @ step.core(S, M, 0) @ Q)


def test_directions_without_change_stay():
    """A change of rank 1 stays one: what is rounding is not blown up."""
    S, u, v = matrix(5, 5, 0), matrix(5, 1, 1), matrix(5, 1, 2)
    change = SpectralStep(lr=0.1).core(S, S + u @ v.mT, 0) - S
    sigma = torch.linalg.svdvals(change)
    torch.testing.assert_close(sigma[0], 0.1 * S.norm())
    assert float(sigma[1]) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_rounding_of_a_core_is_no_direction(dtype):
    """A small change of a large core has its own directions, and noise in all the others."""
    S, u, v = (t.to(dtype) for t in (matrix(20, 20, 0), matrix(20, 1, 1), matrix(20, 1, 2)))
    S = 100 * S
    change = SpectralStep(lr=0.1).core(S, S + 0.01 * u @ v.mT, 0) - S
    sigma = torch.linalg.svdvals(change)
    torch.testing.assert_close(sigma[0], 0.1 * S.norm())
    assert float(sigma[1]) < 1e-3 * float(sigma[0])


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e3, 1e20])
def test_no_change_is_no_step_at_any_size(size):
    S = size * matrix(3, 3, 0).float()
    step = SpectralStep(lr=0.5)
    assert torch.equal(step.core(S, S.clone(), 0), S)
    assert torch.equal(step.core(S, S.nextafter(2 * S), 0), S)


def test_no_change_is_no_step_and_a_core_of_zeros_becomes_the_mean():
    S, M = matrix(3, 3, 0), matrix(3, 3, 1)
    step = SpectralStep()
    assert torch.equal(step.core(S, S.clone(), 0), S)
    assert torch.equal(step.core(torch.zeros_like(S), M, 0), M)


def test_the_rate_follows_the_number_of_the_round():
    S, M = matrix(3, 3, 0), matrix(3, 3, 1)
    step = SpectralStep(lr=lambda round: 0.5 / (1 + round))
    one, other = (step.core(S, M, round) - S for round in (0, 4))
    torch.testing.assert_close(one, 5 * other)


@pytest.mark.parametrize(
    "lr, error", [(0.0, ValueError), (float("nan"), ValueError), ("1", TypeError)]
)
def test_a_length_that_cannot_be_meant_is_refused(lr, error):
    with pytest.raises(error, match=r"`SpectralStep\(lr="):
        SpectralStep(lr=lr)


def test_fedlrt_takes_steps_only():
    with pytest.raises(TypeError, match=r"`FeDLRT\(server_step=...\)` must be `MeanStep\(\)`"):
        FeDLRT(server_step=0.1)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_round_takes_the_step_on_the_matrix_itself(draw, rank):
    """`W + lr ||W|| P Q^T / ||P Q^T||` with the change `W_mean - W` that a plain round makes."""
    problem = heterogeneous(draw)
    found = []
    model = low_rank(draw, 10, 8, rank)
    start = weight(model).clone()
    for step in (MeanStep(), SpectralStep(lr=0.2)):
        own = copy.deepcopy(model)
        method = FeDLRT(lr=0.05, steps=3, rtol=0.0, server_step=step)
        run(*federation(own, method, problem.data), 1)
        found.append(weight(own) - start)
    P, sigma, Qh = torch.linalg.svd(found[0], full_matrices=False)
    kept = sigma > 1e-6 * sigma[0]
    polar = P[:, kept] @ Qh[kept]
    torch.testing.assert_close(found[1], 0.2 * start.norm() * polar / polar.norm())


def test_steps_that_shrink_come_near_the_optimum_of_clients_that_disagree(draw):
    problem = heterogeneous(draw, 5, 4, rank=2)
    model = low_rank(draw, 5, 4, 4)
    rate = SpectralStep(lr=lambda round: 0.4 * 0.92**round)
    method = FeDLRT(lr=0.05, steps=2, rtol=0.0, server_step=rate)
    run(*federation(model, method, problem.data), 60)
    assert (weight(model) - problem.optimum).norm() < 0.05 * problem.optimum.norm()
