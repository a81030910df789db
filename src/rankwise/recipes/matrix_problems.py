"""Two problems on one matrix, in float64: a least-squares problem and a differential equation."""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rankwise.check.flow import RotatingFlow
from rankwise.integrators.integrator import Integrator, step
from rankwise.numerics.factors import Factors
from rankwise.numerics.init import truncated_svd
from rankwise.numerics.retract import cut
from rankwise.numerics.tangent import Tangent, project, squared_norm
from rankwise.numerics.truncate import rank_for_tolerance
from rankwise.recipes.trace import Trace

ROWS, COLUMNS, TARGET_RANK = 60, 50, 8
END_OF_FLOW = 0.5


class MatrixProblem(NamedTuple):
    """What is asked of a matrix: where it starts, which way is down, how far it still is."""

    start: Tensor
    gradient: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, float], Tensor]
    """Of a matrix, at the part in (0, 1] of the run that is done."""
    step: float


def sensing(smallest: float, seed: int) -> MatrixProblem:
    """`||A (W - T) B||^2 / 2` for a target of rank 8; condition number 625, steps of `1/L`.

    The start has singular values from 1 down to `smallest`.
    """
    draw = torch.Generator().manual_seed(seed)

    def rotation(k: int) -> Tensor:
        return torch.linalg.qr(torch.randn(k, k, dtype=torch.float64, generator=draw))[0]

    def matrix(sigma: Tensor) -> Tensor:
        r = sigma.shape[0]
        return rotation(ROWS)[:, :r] @ torch.diag(sigma) @ rotation(COLUMNS)[:, :r].mT

    A = torch.linspace(1.0, 0.2, ROWS, dtype=torch.float64)[:, None] * rotation(ROWS)
    B = torch.linspace(1.0, 0.2, COLUMNS, dtype=torch.float64)[:, None] * rotation(COLUMNS)
    target = matrix(torch.linspace(2.0, 1.0, TARGET_RANK, dtype=torch.float64))
    start = matrix(_graded(smallest))
    return MatrixProblem(
        start,
        gradient=lambda W: A.mT @ (A @ (W - target) @ B.mT) @ B,
        loss=lambda W, _: 0.5 * (A @ (W - target) @ B.mT).square().sum(),
        step=1.0,
    )


def flow(smallest: float, steps: int, seed: int) -> MatrixProblem:
    """A rotating matrix whose way is known; the loss is the relative error at each time."""
    draw = torch.Generator().manual_seed(seed)
    way = RotatingFlow(ROWS, COLUMNS, _graded(smallest), generator=draw)

    def error(W: Tensor, done: float) -> Tensor:
        exact = way.at(END_OF_FLOW * done)
        return (W - exact).norm() / exact.norm()

    return MatrixProblem(
        way.at(0.0), gradient=lambda W: -way.slope(W), loss=error, step=END_OF_FLOW / steps
    )


def _graded(smallest: float) -> Tensor:
    return torch.logspace(0, math.log10(smallest), TARGET_RANK, dtype=torch.float64)


def follow(
    name: str,
    integrator: Integrator,
    problem: MatrixProblem,
    *,
    rank: int,
    rtol: float | None,
    steps: int,
) -> Trace:
    """Take `steps` steps from the best approximation of the start; without `rtol`, at one rank."""
    trace, f = Trace(name), truncated_svd(problem.start, rank)
    for k in range(steps):
        norms: list[float] = []

        def displacement(point: Factors, norms: list[float] = norms) -> Tangent:
            xi = project(point, problem.gradient(point.dense()))
            norms.append(float(squared_norm(xi).sqrt()))
            return Tangent(*(problem.step * t for t in xi))

        begin = time.perf_counter()
        spectrum = step(integrator.at(k + 1), f, displacement)
        f = cut(spectrum, rank if rtol is None else rank_for_tolerance(spectrum.sigma, rtol=rtol))
        seconds = time.perf_counter() - begin
        trace.add(
            gradients=1 if integrator.same_matrix else len(norms),
            seconds=seconds,
            loss=float(problem.loss(f.dense(), (k + 1) / steps)),
            rank=f.rank,
            stationarity=norms[0],
        )
    return trace


def descend_on_factors(problem: MatrixProblem, *, rank: int, steps: int) -> Trace:
    """Gradient descent on two factors, `W = B A`, as LoRA does it without Adam: the baseline.

    Its steps are `step / max(||A||^2, ||B||^2)`, the longest for which descent is certain.
    """
    trace, f = Trace("two factors"), truncated_svd(problem.start, rank)
    root = f.S.sqrt()
    B, A = f.U @ root, root @ f.V.mT
    for k in range(steps):
        begin = time.perf_counter()
        G = problem.gradient(B @ A)
        norms = (torch.linalg.matrix_norm(X, 2) for X in (A, B))
        h = problem.step / max(1.0, *(float(norm) ** 2 for norm in norms))
        here = Factors(torch.linalg.qr(B)[0], f.S, torch.linalg.qr(A.mT)[0])
        stationarity = float(squared_norm(project(here, G)).sqrt())
        B, A = B - h * G @ A.mT, A - h * B.mT @ G
        seconds = time.perf_counter() - begin
        loss = float(problem.loss(B @ A, (k + 1) / steps))
        trace.add(gradients=1, seconds=seconds, loss=loss, rank=rank, stationarity=stationarity)
    return trace
