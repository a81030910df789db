"""Parallel BUG that looks at what it leaves out, and widens its bases where that is too much."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rankwise.integrators.integrator import Integrator, Stages
from rankwise.numerics.factors import Factors
from rankwise.numerics.given import check_number
from rankwise.numerics.retract import displaced, embed_factors, whole


@dataclass(frozen=True)
class CheckedBUG(Integrator):
    """The parallel step, rejected where `||U~^T h G V~|| > rtol ||S_hat||`.

    The parallel step leaves the block `U~^T G V~` at zero. Ceruti, Kusch and Lubich
    (SISC 2024) estimate its error by that block and repeat a rejected step from the same `W` in the
    bases that it had found, with room for 4r directions. Both tries are of the same matrix.

    Args:
        rtol: block that is allowed, relative to the core after the step, > 0.
    """

    rtol: float = 1e-2

    same_matrix: ClassVar[bool] = True
    points: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_number("CheckedBUG(rtol=...)", self.rtol)
        if not self.rtol > 0:
            raise ValueError(f"`CheckedBUG(rtol=...)` must be positive, got {self.rtol}")

    def stages(self, f: Factors, take: Callable[[Tensor], Tensor] = whole) -> Stages:
        D = yield f
        narrow = displaced(f, D, take)
        wide = embed_factors(f, narrow.frame)
        D = yield wide
        left_out = torch.linalg.vector_norm(take(D.C)[f.rank :, f.rank :])
        if left_out <= self.rtol * torch.linalg.vector_norm(narrow.sigma):
            return narrow
        return displaced(wide, D, take)
