"""All integrators, and what drives them through a differential equation or a step."""

from collections.abc import Callable

import torch
from torch import Tensor

from cases import orthonormal
from rankwise.check import RotatingFlow
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
