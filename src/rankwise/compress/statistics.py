"""What a few batches tell of a layer: which inputs it meets, and which outputs matter."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rankwise.numerics.weighted import WeightedSVD, damped, stack_triangle, weighted_svd


@dataclass
class Triangle:
    """`R` (n, n) with `R^T R = sum x x^T` over all rows seen; rows are stacked 2n at a time."""

    R: Tensor | None = None
    waiting: list[Tensor] = field(default_factory=list)
    rows: int = 0

    def add(self, rows: Tensor) -> None:
        self.waiting.append(rows.detach().clone())
        self.rows += len(rows)
        if sum(map(len, self.waiting)) >= 2 * rows.shape[1]:
            self._stack()

    def mean(self) -> Tensor:
        """Of one row: `R^T R = E x x^T`."""
        self._stack()
        assert self.R is not None
        return self.R / self.rows**0.5

    def _stack(self) -> None:
        if self.waiting:
            self.R = stack_triangle(self.R, torch.cat(self.waiting))
            self.waiting = []


class Statistics:
    """Of one layer: two triangles as small as the shorter side of its weight.

    Args:
        W: the weight (m, n).
    """

    def __init__(self, W: Tensor) -> None:
        self.W = W
        self.tall = W.shape[0] > W.shape[1]
        self.near, self.far = Triangle(), Triangle()
        self.squares = W.new_zeros(2)
        """Sums of `|x|^2` and of `|d|^2`."""
        self.places = 0.0
        """Rows that had a gradient, those left out of the triangles included."""
        self.met = 0
        """All rows."""

    def add(self, x: Tensor, d: Tensor) -> None:
        """Inputs (rows, n) and gradients of the outputs (rows, m)."""
        x, d = x.to(self.W.dtype), d.to(self.W.dtype)
        self.squares += torch.stack([x.square().sum(), d.square().sum()])
        near, far = (x, d @ self.W) if self.tall else (d, x @ self.W.mT)
        self.near.add(near)
        self.far.add(far)

    def decomposition(self, damping: tuple[float, float]) -> WeightedSVD:
        """In the metric `sum over places of (E d d^T + b I) (x) (E x x^T + a I)`.

        Args:
            damping: `a` and `b` in parts of the mean square of an entry of x and of d.
        """
        rows, (m, n) = self.near.rows, self.W.shape
        a = damping[0] * self.squares[0] / (rows * n)
        b = damping[1] * self.squares[1] / (rows * m)
        W, near, far = (self.W.mT, a, b) if self.tall else (self.W, b, a)
        L = damped(self.near.mean(), near)
        Z = stack_triangle(self.far.mean(), far**0.5 * W.mT) * self.places**0.5
        # A copy: cuts are tried out in the weight itself.
        return weighted_svd(W.clone(), L, Z, tall=self.tall)
