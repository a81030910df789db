"""What a few batches tell of a layer: which inputs it meets, and which outputs matter."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rankwise.numerics.weighted import stack_triangle


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


@dataclass
class Statistics:
    """Of one layer."""

    inputs: Triangle = field(default_factory=Triangle)
    gradients: Triangle = field(default_factory=Triangle)
    places: int = 0
    """Rows that had a gradient, those left out of the triangles included."""

    def triangles(self) -> tuple[Tensor, Tensor]:
        """`L` (m, m) and `R` (n, n) for which `||L (W - W') R^T||^2` is the loss that `W'` adds.

        Up to one factor for all layers: (sum over places) of `E d d^T (x) E x x^T`.
        """
        return self.gradients.mean() * self.places**0.5, self.inputs.mean()
