"""What the theorems promise of a whole run of gradient descent with each integrator."""

import pytest
import torch
from torch import Tensor

from cases import dense_projection, factors, matrix, orthonormal
from flows import ALL, one_step
from rankwise.integrators import BUG, ParallelBUG, ProjectorSplitting
from rankwise.numerics.factors import Factors
from rankwise.numerics.retract import cut
from rankwise.numerics.truncate import rank_for_tolerance

each = pytest.mark.parametrize("integrator", ALL, ids=lambda i: type(i).__name__)
descending = pytest.mark.parametrize(
    "integrator",
    [i for i in ALL if not isinstance(i, (ProjectorSplitting, BUG))],
    ids=lambda i: type(i).__name__,
)


class Sensing:
    """`||A (W - T) B||^2 / 2`; the gradient's Lipschitz constant is `L = ||A||^2 ||B||^2`."""

    def __init__(self, target: Tensor, draw: torch.Generator) -> None:
        m, n = target.shape
        self.target = target
        self.A = matrix(m, m, torch.linspace(1.0, 0.5, m, dtype=torch.float64), draw)
        self.B = matrix(n, n, torch.linspace(2.0, 1.0, n, dtype=torch.float64), draw)
        self.L = 4.0

    def loss(self, W: Tensor) -> Tensor:
        return 0.5 * (self.A @ (W - self.target) @ self.B).square().sum()

    def gradient(self, W: Tensor) -> Tensor:
        return self.A.mT @ (self.A @ (W - self.target) @ self.B) @ self.B.mT


def stationarity(problem: Sensing, f: Factors) -> Tensor:
    return dense_projection(f, problem.gradient(f.dense())).norm()


@descending
@pytest.mark.parametrize("smallest", [1.0, 1e-4, 1e-8])
def test_every_step_of_length_one_over_L_descends(integrator, smallest, draw):
    exponent = torch.tensor(smallest).log10().item()
    f = factors(20, 15, torch.logspace(0, exponent, 4, dtype=torch.float64), draw)
    problem = Sensing(matrix(20, 15, torch.linspace(2, 1, 4, dtype=torch.float64), draw), draw)
    before = problem.loss(f.dense())
    for _ in range(100):
        f = cut(one_step(integrator, f, problem.gradient, 1 / problem.L), 4)
        after = problem.loss(f.dense())
        assert after <= before * (1 + 1e-12)
        before = after


@each
def test_the_limit_is_stationary_on_the_manifold(integrator, draw):
    """The target has a higher rank, so that the gradient itself does not vanish there."""
    sigma = torch.tensor([3.0, 2.5, 2.0, 0.5, 0.3], dtype=torch.float64)
    problem = Sensing(matrix(20, 15, sigma, draw), draw)
    f = factors(20, 15, torch.full((3,), 0.1, dtype=torch.float64), draw)
    for _ in range(1500):
        f = cut(one_step(integrator, f, problem.gradient, 1 / problem.L), 3)
    assert problem.gradient(f.dense()).norm() > 0.1
    assert stationarity(problem, f) < 1e-8


@each
def test_a_direction_that_factor_descent_never_finds_is_found(integrator, draw):
    """`W` has the target's first direction; the second is in `V`, its partner not in `U`.

    `dU = G V S^T`, `dV = G^T U S` and `dS = U^T G V` all vanish there, `G V` does not.
    """
    P, Q = orthonormal(8, 3, draw), orthonormal(6, 3, draw)
    sigma = torch.tensor([2.0, 1.0], dtype=torch.float64)
    target = P[:, :2] @ torch.diag(sigma) @ Q[:, :2].mT
    start = Factors(P[:, [0, 2]], torch.diag(sigma * torch.tensor([1.0, 0.0])), Q[:, :2])
    G = start.dense() - target
    U, S, V = start
    for vanishing in (G @ V @ S.mT, G.mT @ U @ S, U.mT @ G @ V):
        assert vanishing.norm() < 1e-14
    f = start
    for _ in range(60):
        f = cut(one_step(integrator, f, lambda W: W - target, 0.5), 2)
    assert (f.dense() - target).norm() < 1e-8


@descending
@pytest.mark.parametrize("start", [2, 14])
def test_the_rank_of_the_target_is_found_from_below_and_from_above(integrator, start, draw):
    problem = Sensing(matrix(20, 15, torch.linspace(2, 1, 5, dtype=torch.float64), draw), draw)
    f = factors(20, 15, torch.full((start,), 0.1, dtype=torch.float64), draw)
    for _ in range(300):
        spectrum = one_step(integrator, f, problem.gradient, 1 / problem.L)
        f = cut(spectrum, rank_for_tolerance(spectrum.sigma, rtol=1e-3))
    assert f.rank == 5
    assert (f.dense() - problem.target).norm() < 1e-2 * problem.target.norm()


def test_a_tolerance_that_falls_with_the_square_of_the_rate_does_not_end_early(draw):
    """Hnatiuk et al. (2024): truncation errors that can be summed, a constant tolerance stalls."""
    problem = Sensing(matrix(20, 15, torch.logspace(0, -4, 8, dtype=torch.float64), draw), draw)
    ends = []
    for falls in (False, True):
        f = factors(20, 15, torch.full((8,), 0.1, dtype=torch.float64), draw)
        for k in range(1500):
            spectrum = one_step(ParallelBUG(), f, problem.gradient, 1 / problem.L)
            rtol = 0.1 * (0.97 ** (2 * k) if falls else 1.0)
            f = cut(spectrum, rank_for_tolerance(spectrum.sigma, rtol=rtol))
        ends.append(problem.loss(f.dense()))
    assert ends[1] < 1e-2 * ends[0]
