"""Steps of the core alone, in bases that rest."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rankwise.integrators.integrator import Integrator, Stages
from rankwise.numerics.factors import Factors
from rankwise.numerics.retract import Frame, decompose, whole


@dataclass(frozen=True)
class Coefficients(Integrator):
    """`S_hat = S - h U^T G V`: gradient descent in the space that `U` and `V` span."""

    same_matrix: ClassVar[bool] = True
    points: ClassVar[int] = 1
    widening: ClassVar[int] = 1
    moves_bases: ClassVar[bool] = False

    def stages(self, f: Factors, take: Callable[[Tensor], Tensor] = whole) -> Stages:
        D = yield f
        return decompose(Frame(f.U, f.V), f.S - take(D.C))


@dataclass(frozen=True)
class BasisEvery(Integrator):
    """`inner` in every `every`-th step, beginning with the first; between them the core alone.

    The amortised scheme of FeDLRT, GeoLoRA's code and RobustDLRT: let a rank rule of the same cycle
    keep the new directions until its end. Between them a `LowRankLinear` forms the gradient of its
    core only and keeps no input for it: cheaper than LoRA, and blind to all that its bases do not
    span. With `until`, bases rest for good after that many steps;
    then stochastic gradients with momentum converge to a stationary point (Hnatiuk, Kusch, Kusch,
    Gauger and Walther, 2024).
    """

    inner: Integrator
    every: int = 1
    until: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Integrator):
            raise TypeError(f"`BasisEvery(inner=...)` must be an integrator, got {self.inner!r}")
        for name in ("every", "until"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`BasisEvery({name}=...)` must be at least 1 step, got {value}")

    @property
    def same_matrix(self) -> bool:  # type: ignore[override]
        return self.inner.same_matrix

    @property
    def points(self) -> int:  # type: ignore[override]
        return self.inner.points

    def stages(self, f: Factors, take: Callable[[Tensor], Tensor] = whole) -> Stages:
        return self.inner.stages(f, take)

    def at(self, step: int) -> Integrator:
        resting = self.until is not None and step > self.until
        return Coefficients() if resting or (step - 1) % self.every else self.inner
