"""Update rules: from the tangent gradient of one layer to the direction of its step."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rankwise.numerics.given import check_number
from rankwise.numerics.manifold import Point, T, TangentVector
from rankwise.optim.remembered import Shapes, check_tensors, check_whole

State = dict[str, Any]
"""What a rule remembers of one layer: tensors and numbers, saved with the optimizer."""


class UpdateRule(ABC):
    """Turns gradients into directions; `W - lr * direction` is then retracted to low rank.

    A rule is immutable and shared by all layers; what it remembers of a layer is in `state`,
    an empty dict at first.
    """

    relative: ClassVar[bool] = False
    """Whether directions have no unit, so that a step is measured by the weight; see `trust`."""

    needs_matrices: ClassVar[bool] = False
    """Whether it has no meaning for a tensor."""

    stackable: ClassVar[bool] = False
    """Whether it takes many layers at once: everything stacked in a leading dimension, ranks filled
    up with columns of zeros, one `state` for all of what it `remembers`."""

    remembers: ClassVar[tuple[str, ...]] = ()
    """Names of what it keeps in `state`; other names there are not its own. For `stackable` rules:
    numbers, tensors without a rank, and triples of coordinates."""

    turns: ClassVar[int] = 1
    """In which step of how many a layer moves by default: more than one for rules that remember the
    gradients of the others."""

    def __init_subclass__(cls) -> None:
        """What a rule says of stacks does not hold for a subclass that computes something else."""
        super().__init_subclass__()
        methods = {"direction", "observe", "fresh", "core", "transport"}
        if methods & vars(cls).keys() and "stackable" not in vars(cls):
            cls.stackable = False

    @property
    def mean_decay(self) -> float | None:
        """Decay of the mean of gradients in `momentum`, over `step` of them; None without one."""
        return None

    @abstractmethod
    def direction(self, f: Point, gradient: T, state: State) -> T:
        """The direction at `f`; may update `state`."""

    def observe(self, f: Point, gradient: T, state: State) -> None:
        """Update `state` in a step in which the layer stays where it is."""
        self.direction(f, gradient, state)

    def fresh(self, f: Point, gradient: T, state: State) -> T:
        """How a part of this step's gradient that is new at `f` enters the direction.

        For integrators that look beyond the tangent space of the first point, after `direction`.
        """
        return gradient

    def core(self, core: Tensor) -> Tensor:
        """Last change to the direction, as a core in the augmented bases, (<= 2r, <= 2r, ...)."""
        return core

    def check_state(self, shapes: Shapes, state: State) -> None:
        """ValueError, naming the entry, for a saved `state` from which no step can go on."""
        if check_whole(self.remembers, state) and "momentum" in self.remembers:
            U, core, V = shapes
            check_tensors("momentum", state["momentum"], (U, V, core))

    def transport(self, old: Point, new: Point, gradient: TangentVector, state: State) -> None:
        """Move what `state` holds of the tangent space at `old`, that of `gradient`, to `new`."""
        if "momentum" in state:
            moved = gradient.like(*state["momentum"]).transport(old, new)
            state["momentum"] = coordinates(moved)


@dataclass(frozen=True)
class SGD(UpdateRule):
    """The tangent gradient itself: Riemannian gradient descent, GeoLoRA's step without Adam."""

    stackable: ClassVar[bool] = True

    def direction(self, f: Point, gradient: T, state: State) -> T:
        return gradient


@dataclass(frozen=True)
class HeavyBall(UpdateRule):
    """`M <- momentum * M + P(W) G`, with `M` transported from tangent space to tangent space.

    The low-rank heavy ball of Schotthoefer, Klein and Kusch (arXiv 2506.17475) with the whole
    tangent vector kept. `momentum` in [0, 1).
    """

    momentum: float = 0.9

    stackable: ClassVar[bool] = True
    remembers: ClassVar[tuple[str, ...]] = ("momentum",)

    def __post_init__(self) -> None:
        check_unit_interval("HeavyBall", "momentum", self.momentum)

    def direction(self, f: Point, gradient: T, state: State) -> T:
        return accumulate(state, gradient, keep=self.momentum, add=1.0)


def coordinates(xi: TangentVector) -> tuple[Tensor, Tensor, Tensor]:
    return xi.K, xi.L, xi.C


def accumulate(state: State, gradient: T, *, keep: float, add: float) -> T:
    """`M <- keep * M + add * gradient` in `state["momentum"]`, both tangent at the same point."""
    if "momentum" not in state:
        state["momentum"] = tuple(torch.zeros_like(t) for t in coordinates(gradient))
    for moment, g in zip(state["momentum"], coordinates(gradient), strict=True):
        moment.mul_(keep).add_(g, alpha=add)
    return gradient.like(*state["momentum"])


def with_mean_outside(f: Point, gradient: T, state: State, *, keep: float) -> T:
    """`gradient`, of which `L` is known inside of `V` only, with its mean so far outside."""
    if "momentum" not in state:
        return gradient
    # Row by row, as it comes from a file: products round by how their factors lie in memory. Not by
    # `contiguous`, which leaves a single column the strides that it has.
    mean = state["momentum"][1].clone(memory_format=torch.contiguous_format)
    mean /= 1 - keep ** state["step"]
    outside = mean - f.V @ (f.V.mT @ mean)
    return gradient.like(gradient.K, gradient.L + outside, gradient.C)


def look_ahead(M: T, gradient: T, *, keep: float, step: int) -> T:
    """`keep * M / (1 - keep^step) + (1 - keep) * gradient`: the mean, a step ahead."""
    weight = keep / (1 - keep**step)
    pairs = zip(coordinates(M), coordinates(gradient), strict=True)
    return gradient.like(*((m * weight).add_(g, alpha=1 - keep) for m, g in pairs))


def newest(gradient: T, *, keep: float, step: int) -> T:
    """What `look_ahead` makes of this step's gradient alone."""
    weight = (1 - keep) * (1 + keep / (1 - keep**step))
    return gradient.like(*(weight * g for g in coordinates(gradient)))


def check_unit_interval(rule: str, name: str, value: float) -> None:
    check_number(f"{rule}({name}=...)", value)
    if not 0.0 <= value < 1.0:
        raise ValueError(f"`{rule}({name}=...)` must be in [0, 1), got {value}")
