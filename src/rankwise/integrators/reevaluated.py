"""The closure form of an integrator: a gradient of its own at every point."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rankwise.integrators.integrator import Integrator, Stages
from rankwise.numerics.factors import Factors
from rankwise.numerics.retract import whole


@dataclass(frozen=True)
class Reevaluated(Integrator):
    """`inner`, whose optimizer runs the model again at every point, as the papers' codes do.

    On the same batch it gives the iterates of the one-backward form at twice the cost: it is there
    to check that, and for layers whose inputs are not to be kept.
    """

    inner: Integrator

    same_matrix: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Integrator):
            raise TypeError(f"`Reevaluated(inner=...)` must be an integrator, got {self.inner!r}")

    @property
    def points(self) -> int:  # type: ignore[override]
        return self.inner.points

    def stages(self, f: Factors, take: Callable[[Tensor], Tensor] = whole) -> Stages:
        return self.inner.stages(f, take)

    def at(self, step: int) -> Integrator:
        return Reevaluated(self.inner.at(step))
