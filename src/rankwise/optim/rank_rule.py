"""Rank rules: how many directions each layer keeps after a step.

What is said of layers here holds for the modes of a Tucker kernel: each of them has a rank.

New directions need time to grow before they are judged. So a rule works in cycles of `every`
steps: in a cycle's first step each layer keeps up to `grow` new directions, in its last step the
rule decides which of all its directions stay. No rule needs the total number of steps: once the
learning rate has decayed below `rest` times its peak, ranks no longer grow.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rankwise.numerics.given import check_integer, check_number


class Clock(NamedTuple):
    """Where training stands: steps taken including this one, and the rate relative to its peak."""

    step: int
    decay: float


class Candidates(NamedTuple):
    """Directions that one layer, or one mode of a tensor, may keep."""

    sigma: Tensor
    """Singular values after the step, descending, before anything is cut."""
    rank: int
    """Rank before the step."""
    shape: tuple[int, int]
    whole: bool = False
    """Whether the factors are the layer's whole weight, not added to a frozen one."""
    numbers: float | None = None
    """Parameters of one direction; None: a column of `U`, one of `V`, a singular value."""

    @property
    def cost(self) -> float:
        return sum(self.shape) + 1 if self.numbers is None else self.numbers


class RankRule(ABC):
    """Decides the ranks of all layers after a step; has no state of its own."""

    @property
    def grows(self) -> bool:
        """Whether a layer may gain directions."""
        return True

    @abstractmethod
    def ranks(self, clock: Clock, layers: Sequence[Candidates]) -> list[int]:
        """The ranks to keep, at most `len(sigma)` each, of the layers that move in this step."""

    def may_change(self, clock: Clock) -> bool:
        """Whether `ranks` may change one: then all layers move, and processes have to agree."""
        return True


@dataclass(frozen=True)
class FixedRank(RankRule):
    """Every layer keeps its rank."""

    @property
    def grows(self) -> bool:
        return False

    def ranks(self, clock: Clock, layers: Sequence[Candidates]) -> list[int]:
        return [layer.rank for layer in layers]

    def may_change(self, clock: Clock) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class CycledRank(RankRule):
    """Grow, train, judge; see the head of this file.

    Args:
        every: length of a cycle in steps.
        grow: directions that a layer may gain in a cycle.
        min_rank, max_rank: bounds for every layer.
        rest: ranks no longer grow once the learning rate is below this fraction of its peak.
    """

    every: int = 25
    grow: int = 4
    min_rank: int = 1
    max_rank: int | None = None
    rest: float = 1 / 3

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_integer(f"{name}(every=...)", self.every)
        check_integer(f"{name}(grow=...)", self.grow)
        check_number(f"{name}(rest=...)", self.rest)
        if self.every < 2:
            raise ValueError(f"`{name}(every=...)` must be at least 2 steps, got {self.every}")
        if self.grow < 0:
            raise ValueError(f"`{name}(grow=...)` must not be negative, got {self.grow}")
        check_bounds(name, self.min_rank, self.max_rank)
        if not 0.0 <= self.rest <= 1.0:
            raise ValueError(f"`{name}(rest=...)` must be in [0, 1], got {self.rest}")

    @property
    def grows(self) -> bool:
        return self.grow > 0

    def may_change(self, clock: Clock) -> bool:
        return clock.step % self.every in (0, 1)

    def ranks(self, clock: Clock, layers: Sequence[Candidates]) -> list[int]:
        if clock.step % self.every == 0:
            return self.judge(clock, [self._limited(layer) for layer in layers])
        if clock.step % self.every == 1 and clock.decay >= self.rest:
            return [
                min(layer.rank + self.room(layers), capped(layer, self.max_rank))
                for layer in layers
            ]
        return [layer.rank for layer in layers]

    def room(self, layers: Sequence[Candidates]) -> int:
        """How many directions each layer may gain now."""
        return self.grow

    @abstractmethod
    def judge(self, clock: Clock, layers: Sequence[Candidates]) -> list[int]:
        """The ranks at the end of a cycle."""

    def _limited(self, layer: Candidates) -> Candidates:
        # Directions that came with this very step have not been trained and are not judged.
        count = min(layer.rank, capped(layer, self.max_rank))
        return layer._replace(sigma=layer.sigma[:count])


def capped(layer: Candidates, max_rank: int | None) -> int:
    """The highest rank that a layer may have."""
    cap = min(layer.sigma.shape[0], *layer.shape)
    return cap if max_rank is None else min(cap, max_rank)


def check_bounds(rule: str, min_rank: int, max_rank: int | None) -> None:
    check_integer(f"{rule}(min_rank=...)", min_rank)
    if max_rank is not None:
        check_integer(f"{rule}(max_rank=...)", max_rank)
    if min_rank < 1:
        raise ValueError(f"`{rule}(min_rank=...)` must be at least 1, got {min_rank}")
    if max_rank is not None and max_rank < min_rank:
        raise ValueError(
            f"`{rule}(max_rank=...)` must be at least min_rank = {min_rank}, got {max_rank}"
        )


def check_share(name: str, share: float) -> None:
    check_number(name, share)
    if not 0.0 < share < 1.0:
        raise ValueError(f"`{name}` must be in (0, 1), got {share}")


def fetch(vectors: Sequence[Tensor]) -> list[Tensor]:
    """The same vectors on the CPU, by one copy from the device."""
    if not vectors:
        return []
    return list(torch.cat(list(vectors)).cpu().split([v.shape[0] for v in vectors]))
