"""Matrix differential equations with known solutions, and what drives them."""

from collections.abc import Callable

import torch
from torch import Tensor

from cases import matrix, normal, orthonormal
from rankwise.integrators.abc_psi import AugmentedPSI
from rankwise.integrators.augmented_bug import AugmentedBUG
from rankwise.integrators.bug import BUG
from rankwise.integrators.checked_bug import CheckedBUG
from rankwise.integrators.integrator import Integrator, step
from rankwise.integrators.parallel_bug import ParallelBUG
from rankwise.integrators.projector_splitting import ProjectorSplitting
from rankwise.numerics.factors import Factors
from rankwise.numerics.init import truncated_svd
from rankwise.numerics.retract import Spectrum, cut
from rankwise.numerics.tangent import project

ALL = (
    ParallelBUG(),
    CheckedBUG(),
    AugmentedBUG(),
    AugmentedPSI(),
    ProjectorSplitting(),
    BUG(),
)


class RotatingFlow:
    """`W(t) = exp(t (A + I/2)) W(0) exp(t (B + I/2))^T` with skew `A`, `B`.

    It solves `W' = A W + W B^T + W`, its singular values are `exp(t) sigma(0)`, its rank is that
    of the start: what an integrator adds to the error is its own.
    """

    def __init__(self, m: int, n: int, sigma: Tensor, draw: torch.Generator) -> None:
        self.A, self.B = (X - X.mT for X in (normal(m, m, draw=draw), normal(n, n, draw=draw)))
        self.A, self.B = self.A / self.A.norm() * 4, self.B / self.B.norm() * 4
        self.start = matrix(m, n, sigma, draw)

    def at(self, t: float) -> Tensor:
        left, right = torch.linalg.matrix_exp(t * self.A), torch.linalg.matrix_exp(t * self.B)
        return left @ self.start @ right.mT * torch.tensor(t, dtype=torch.float64).exp()

    def slope(self, W: Tensor) -> Tensor:
        return self.A @ W + W @ self.B.mT + W


def one_step(
    integrator: Integrator, f: Factors, gradient: Callable[[Tensor], Tensor], h: float
) -> Spectrum:
    """A step of length `h` against `gradient(W)`, for a dense `W`."""
    return step(integrator, f, lambda p: project(p, h * gradient(p.dense())))


def solve(integrator: Integrator, flow: RotatingFlow, rank: int, t: float, steps: int) -> Factors:
    f = truncated_svd(flow.at(0.0), rank)
    for _ in range(steps):
        f = cut(one_step(integrator, f, lambda W: -flow.slope(W), t / steps), rank)
    return f


def dense(s: Spectrum) -> Tensor:
    """What a step has reached, before it is cut."""
    return s.frame.U_hat @ s.P @ torch.diag(s.sigma) @ s.Qh @ s.frame.V_hat.mT


def basis(*blocks: Tensor) -> Tensor:
    """The projector onto the span of all columns, made here without the code under test."""
    P, sigma, _ = torch.linalg.svd(torch.cat(blocks, dim=1), full_matrices=False)
    P = P[:, sigma > 1e-10 * sigma[0]]
    return P @ P.mT


def rotated(f: Factors, draw: torch.Generator) -> Factors:
    """The same matrix in other bases of the same spaces."""
    Q, R = (orthonormal(f.rank, f.rank, draw) for _ in range(2))
    return Factors(f.U @ Q, Q.mT @ f.S @ R, f.V @ R)
