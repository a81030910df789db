"""Orders of convergence, measured: error over step size on a logarithmic scale."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from rankwise.check.flow import RotatingFlow
from rankwise.integrators.integrator import Integrator, step
from rankwise.numerics.factors import Factors
from rankwise.numerics.init import truncated_svd
from rankwise.numerics.retract import cut, displaced
from rankwise.numerics.tangent import Tangent, project


class Slope(NamedTuple):
    """Errors at step sizes, and the exponent `p` of `error = c h^p` that fits them best."""

    sizes: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def order(self) -> float:
        """Least squares over the logarithms; infinite where an error is zero."""
        if not all(e > 0 for e in self.errors):
            return math.inf
        x = [math.log(h) for h in self.sizes]
        y = [math.log(e) for e in self.errors]
        middle = math.fsum(x) / len(x)
        spread = math.fsum((a - middle) ** 2 for a in x)
        return math.fsum((a - middle) * b for a, b in zip(x, y, strict=True)) / spread

    def __str__(self) -> str:
        rows = (f"{h:10.2e}  {e:10.2e}" for h, e in zip(self.sizes, self.errors, strict=True))
        return "\n".join([" step size       error", *rows, f"order {self.order:.2f}"])


def order_of_step(
    integrator: Integrator,
    *,
    smallest: float = 1e-4,
    outside: float = 0.0,
    rank: int = 6,
    shape: tuple[int, int] = (20, 15),
    steps: Sequence[int] = (40, 80, 160),
    seed: int = 0,
) -> Slope:
    """Error of `integrator` at time 1/2 of a `RotatingFlow`, relative to the solution.

    An integrator that is robust has the same order whatever `smallest` is; one that divides by
    singular values loses it.

    Args:
        smallest: smallest singular value of the start, in (0, 1]; the largest is 1.
        outside: see `RotatingFlow`; with one, errors fall to about its size and no further.
        rank: of the start and of every step.
        shape: (m, n) of the matrix.
        steps: numbers of steps to compare, at least two of them.
    """
    if not 0.0 < smallest <= 1.0:
        raise ValueError(f"`order_of_step(smallest=...)` must be in (0, 1], got {smallest}")
    if len(set(steps)) < 2:
        raise ValueError(
            f"`order_of_step(steps=...)` needs two numbers of steps, got {tuple(steps)}"
        )
    sigma = torch.logspace(0, math.log10(smallest), rank, dtype=torch.float64)
    draw = torch.Generator().manual_seed(seed)
    flow = RotatingFlow(*shape, sigma, outside=outside, generator=draw)
    end, errors = flow.at(0.5), []
    for count in steps:
        h, f = 0.5 / count, truncated_svd(flow.at(0.0), rank)

        def displacement(point: Factors, h: float = h) -> Tangent:
            return project(point, -h * flow.slope(point.dense()))

        for _ in range(count):
            f = cut(step(integrator, f, displacement), rank)
        errors.append(float((f.dense() - end).norm() / end.norm()))
    return Slope(tuple(0.5 / count for count in steps), tuple(errors))


def _own_retraction(f: Factors, xi: Tangent) -> Factors:
    return cut(displaced(f, xi), f.rank)


def order_of_retraction(
    retract: Callable[[Factors, Tangent], Factors] = _own_retraction,
    *,
    rank: int = 3,
    shape: tuple[int, int] = (20, 15),
    sizes: Sequence[float] = (1e-2, 3e-3, 1e-3),
    seed: int = 0,
) -> Slope:
    """Distance of `retract(f, h xi)` from `W - h xi` over `h`, for a tangent `xi` of norm 1.

    A retraction has order 2 at least (Boumal, 2023, definition 3.47).
    """
    draw = torch.Generator().manual_seed(seed)
    W, G = (torch.randn(*shape, dtype=torch.float64, generator=draw) for _ in range(2))
    f = truncated_svd(W, rank)
    dense = project(f, G).dense(f)
    xi = project(f, dense / dense.norm())
    errors = []
    for h in sizes:
        new = retract(f, Tangent(*(h * t for t in xi)))
        errors.append(float((new.dense() - (f.dense() - h * xi.dense(f))).norm()))
    return Slope(tuple(sizes), tuple(errors))
