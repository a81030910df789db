"""Sets that hold how far a network drives two inputs apart: balls and ellipsoids.

Let `d` be the difference of a layer's outputs for two inputs at distance 1 or less. A ball says
`||d|| <= radius`. An ellipsoid says `d^T Y^-1 d <= 1` with `Y = diag(a)^2 + F F^T`, i.e. that `d`
is in the image of the unit ball under any `C` with `Y = C C^T`.

A linear map takes the ellipsoid of `Y` to that of `W Y W^T`, without loss. An activation whose
slopes are in [0, 1] gives `d = T v` with a diagonal `0 <= T <= I`, for `v` of an ellipsoid `Y`.
For every diagonal `L > 0` that has `X = L - L Y L / 4 > 0`

    d^T L d <= d^T L v <= d^T L Y L d / 4 + v^T Y^-1 v,   so   d^T X d <= v^T Y^-1 v <= 1:

the new ellipsoid is that of `X^-1`. This is the matrix inequality of LipSDP (Fazlyab et al., 2019)
solved layer by layer (ECLipsE, Xu and Sivaranjani, NeurIPS 2024), whose closed form takes
`L = lam I` with `lam = 2 / ||Y||`. Then `L Y <= 2`, `X >= L / 2` and `X^-1 <= ||Y||`: never worse
than the ball. Other diagonals may do better, see `rankwise.robust.refine`.

Nothing is inverted here: for `Y = C C^T`, `X^-1 = L^-1 + C (4 I - C^T L C)^-1 C^T`, so that after a
map of rank r all is r x r or thin.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SAFETY = 1e-9
"""Share by which every norm and every ellipsoid is made larger than computed.

Rounding in float64 costs about `n 1e-16` of the norm, for `n` numbers in a sum.
"""
JITTER = 1e-14
TINY = 1e-200
MOST = 5.0
"""Bound of `|log|` of the multipliers against each other, which keeps all well conditioned."""


class Sphere(NamedTuple):
    """Differences of norm `radius` at most."""

    radius: float


class Ellipsoid(NamedTuple):
    """Differences `d` (n,) with `d^T Y^-1 d <= 1`, `Y = diag(axes)^2 + factor factor^T`.

    `axes` (n,) and `factor` (n, k), both float64.
    """

    axes: Tensor
    factor: Tensor

    def root(self) -> Tensor:
        """`C` (n, k), k <= n, with `Y = C C^T`."""
        return _narrowed(_beside(self.axes.diag(), self.factor))

    @property
    def radius(self) -> float:
        """Largest norm of a difference."""
        if not self.factor.numel():
            return float(self.axes.detach().abs().max()) * (1.0 + SAFETY)
        return spectral_norm(self.root())

    def scaled(self, factors: Tensor) -> "Ellipsoid":
        """After a multiplication by `factors`, (n,) or one number."""
        rows = factors.expand_as(self.axes)
        return Ellipsoid(rows * self.axes, rows[:, None] * self.factor)


Reachable = Sphere | Ellipsoid


def as_ball(reachable: Reachable) -> Sphere:
    return Sphere(reachable.radius)


def as_ellipsoid(reachable: Reachable, size: int) -> Ellipsoid:
    """The same set; a ball in `size` dimensions."""
    if isinstance(reachable, Ellipsoid):
        return reachable
    axes = torch.full((size,), reachable.radius, dtype=torch.float64)
    return Ellipsoid(axes, axes.new_zeros(size, 0))


def mapped(reachable: Ellipsoid, parts: Sequence[Tensor]) -> Ellipsoid:
    """After the product of the matrices `parts`, in float64; the last of them acts first."""
    *others, first = parts
    C = _narrowed(_beside(first * reachable.axes, first @ reachable.factor))
    for part in reversed(others):
        C = _narrowed(part @ C)
    return Ellipsoid(C.new_zeros(len(C)), C)


def activated(reachable: Ellipsoid, largest_slope: float, logits: Tensor) -> Ellipsoid:
    """After an activation with slopes in [0, `largest_slope`], one for each number.

    Args:
        reachable: of the n inputs.
        largest_slope: positive; the activation is this times one with slopes in [0, 1].
        logits: (n,), any numbers; the multipliers are `L = 4 sigmoid(mean) w / ||C^T w C||` with
            `w = exp(logits - mean)`, so that `X > 0` whatever they are. Zeros: the closed form.
    """
    C = reachable.root()
    mean = logits.mean()
    w = (logits - mean).clamp(-MOST, MOST).exp()
    M = C.mT @ (w[:, None] * C)
    largest = torch.linalg.eigvalsh(M)[-1].clamp_min(TINY) * (1.0 + SAFETY)
    share = 4.0 * mean.clamp(-MOST, MOST).sigmoid() / largest
    core = 4.0 * torch.eye(C.shape[1], dtype=C.dtype) - share * M
    factor = torch.linalg.solve_triangular(torch.linalg.cholesky(core), C.mT, upper=False).mT
    safe = torch.tensor(largest_slope * (1.0 + SAFETY), dtype=C.dtype)
    return Ellipsoid((share * w).rsqrt(), factor).scaled(safe)


def spectral_norm(C: Tensor) -> float:
    """`||C||_2` rounded up, of a matrix in float64."""
    return float(torch.linalg.matrix_norm(C.detach(), 2)) * (1.0 + SAFETY)


def _beside(left: Tensor, factor: Tensor) -> Tensor:
    """`[left, factor]`, without a `left` of zeros."""
    return torch.cat([left, factor], dim=1) if bool(left.any()) or not factor.numel() else factor


def _narrowed(C: Tensor) -> Tensor:
    """A triangle (n, n) with the same `C C^T`, where `C` (n, k) is wider than that.

    By Cholesky, which has a derivative where the rank is deficient too. What is added to the
    diagonal covers the rounding of the product, and makes the set larger.
    """
    if C.shape[1] <= C.shape[0]:
        return C
    M = C @ C.mT
    added = JITTER * M.diagonal().sum() + TINY
    return torch.linalg.cholesky(M + added * torch.eye(len(M), dtype=M.dtype))
