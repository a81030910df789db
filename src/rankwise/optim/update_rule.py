"""Update rules: from the tangent gradient of one layer to the direction of its step."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rankwise.numerics.factors import Factors
from rankwise.numerics.tangent import Tangent
from rankwise.numerics.transport import transport

State = dict[str, Any]
"""What a rule remembers of one layer: tensors and numbers, saved with the optimizer."""


class UpdateRule(ABC):
    """Turns gradients into directions; `W - lr * direction` is then retracted to low rank.

    A rule is immutable and shared by all layers; what it remembers of a layer is in `state`,
    an empty dict at first.
    """

    relative: ClassVar[bool] = False
    """Whether directions have no unit, so that a step is measured by the weight; see `trust`."""

    @abstractmethod
    def direction(self, f: Factors, gradient: Tangent, state: State) -> Tangent:
        """The direction at `f`; may update `state`. `K`, `L`, `C` need not be consistent."""

    def fresh(self, f: Factors, gradient: Tangent, state: State) -> Tangent:
        """How a part of this step's gradient that is new at `f` enters the direction.

        For integrators that look beyond the tangent space of the first point, after `direction`.
        """
        return gradient

    def core(self, core: Tensor) -> Tensor:
        """Last change to the direction, as a matrix in the augmented bases, (<= 2r, <= 2r)."""
        return core

    def transport(self, old: Factors, new: Factors, state: State) -> None:
        """Move what `state` holds of the tangent space at `old` to the one at `new`."""
        if "momentum" in state:
            state["momentum"] = tuple(transport(old, new, Tangent(*state["momentum"])))


@dataclass(frozen=True)
class SGD(UpdateRule):
    """The tangent gradient itself: Riemannian gradient descent, GeoLoRA's step without Adam."""

    def direction(self, f: Factors, gradient: Tangent, state: State) -> Tangent:
        return gradient


@dataclass(frozen=True)
class HeavyBall(UpdateRule):
    """`M <- momentum * M + P(W) G`, with `M` transported from tangent space to tangent space.

    The low-rank heavy ball of Schotthoefer, Klein and Kusch (arXiv 2506.17475) with the whole
    tangent vector kept. `momentum` in [0, 1).
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_unit_interval("HeavyBall", "momentum", self.momentum)

    def direction(self, f: Factors, gradient: Tangent, state: State) -> Tangent:
        return accumulate(state, gradient, keep=self.momentum, add=1.0)


def accumulate(state: State, gradient: Tangent, *, keep: float, add: float) -> Tangent:
    """`M <- keep * M + add * gradient` in `state["momentum"]`, both tangent at the same point."""
    if "momentum" not in state:
        state["momentum"] = tuple(torch.zeros_like(t) for t in gradient)
    for moment, g in zip(state["momentum"], gradient, strict=True):
        moment.mul_(keep).add_(g, alpha=add)
    return Tangent(*state["momentum"])


def look_ahead(M: Tangent, gradient: Tangent, *, keep: float, step: int) -> Tangent:
    """`keep * M / (1 - keep^step) + (1 - keep) * gradient`: the mean, a step ahead."""
    weight = keep / (1 - keep**step)
    pairs = zip(M, gradient, strict=True)
    return Tangent(*((m * weight).add_(g, alpha=1 - keep) for m, g in pairs))


def newest(gradient: Tangent, *, keep: float, step: int) -> Tangent:
    """What `look_ahead` makes of this step's gradient alone."""
    weight = (1 - keep) * (1 + keep / (1 - keep**step))
    return Tangent(*(weight * g for g in gradient))


def check_unit_interval(rule: str, name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"`{rule}({name}=...)` must be in [0, 1), got {value}")
