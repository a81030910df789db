"""Rank rules: how many directions each layer keeps after a step.

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

from rankwise.numerics.truncate import rank_above, ranks_for_budget


class Clock(NamedTuple):
    """Where training stands: steps taken including this one, and the rate relative to its peak."""

    step: int
    decay: float


class Candidates(NamedTuple):
    """Directions that one layer may keep."""

    sigma: Tensor
    """Singular values after the step, descending, before anything is cut."""
    rank: int
    """Rank before the step."""
    shape: tuple[int, int]

    @property
    def cost(self) -> int:
        """Parameters of one direction: a column of `U`, one of `V`, a singular value."""
        return sum(self.shape) + 1


class RankRule(ABC):
    """Decides the ranks of all layers after a step; has no state of its own."""

    @abstractmethod
    def ranks(self, clock: Clock, layers: Sequence[Candidates]) -> list[int]:
        """The ranks to keep, at most `len(sigma)` each."""


@dataclass(frozen=True)
class FixedRank(RankRule):
    """Every layer keeps its rank."""

    def ranks(self, clock: Clock, layers: Sequence[Candidates]) -> list[int]:
        return [layer.rank for layer in layers]


@dataclass(frozen=True)
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
        if self.every < 2:
            raise ValueError(f"`{name}(every=...)` must be at least 2 steps, got {self.every}")
        if self.grow < 0:
            raise ValueError(f"`{name}(grow=...)` must not be negative, got {self.grow}")
        if self.min_rank < 1:
            raise ValueError(f"`{name}(min_rank=...)` must be at least 1, got {self.min_rank}")
        if self.max_rank is not None and self.max_rank < self.min_rank:
            raise ValueError(
                f"`{name}(max_rank=...)` must be at least min_rank = {self.min_rank}, "
                f"got {self.max_rank}"
            )
        if not 0.0 <= self.rest <= 1.0:
            raise ValueError(f"`{name}(rest=...)` must be in [0, 1], got {self.rest}")

    def ranks(self, clock: Clock, layers: Sequence[Candidates]) -> list[int]:
        if clock.step % self.every == 0:
            return self.judge(clock, [self._limited(layer) for layer in layers])
        if clock.step % self.every == 1 and clock.decay >= self.rest:
            return [min(layer.rank + self.room(layers), self._cap(layer)) for layer in layers]
        return [layer.rank for layer in layers]

    def room(self, layers: Sequence[Candidates]) -> int:
        """How many directions each layer may gain now."""
        return self.grow

    @abstractmethod
    def judge(self, clock: Clock, layers: Sequence[Candidates]) -> list[int]:
        """The ranks at the end of a cycle."""

    def _cap(self, layer: Candidates) -> int:
        cap = min(layer.sigma.shape[0], *layer.shape)
        return cap if self.max_rank is None else min(cap, self.max_rank)

    def _limited(self, layer: Candidates) -> Candidates:
        # Directions that came with this very step have not been trained and are not judged.
        return layer._replace(sigma=layer.sigma[: min(layer.rank, self._cap(layer))])


@dataclass(frozen=True)
class Tolerance(CycledRank):
    """Each layer keeps the directions that carry more than `rtol` of its own Frobenius norm.

    So no rank stays above `1 / rtol^2`. What a cut takes away has to be learned again, hence two
    limits: a cycle keeps at least the share `keep` of a layer's rank, and once the learning rate is
    below half of `rest` times its peak, the tolerance shrinks with it.

    Args:
        rtol: singular values up to `rtol * ||sigma||` are cut at the end of a cycle, in [0, 1).
        keep: share of its rank that a layer keeps at least in a cycle, in (0, 1).
    """

    rtol: float = 0.3
    keep: float = 1 / 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.rtol < 1.0:
            raise ValueError(f"`Tolerance(rtol=...)` must be in [0, 1), got {self.rtol}")
        _check_share("Tolerance(keep=...)", self.keep)

    def judge(self, clock: Clock, layers: Sequence[Candidates]) -> list[int]:
        rtol = self.rtol * min(1.0, clock.decay / (self.rest / 2)) if self.rest else self.rtol
        spectra = fetch_spectra(layers)
        return [
            rank_above(s, rtol=rtol, min_rank=max(self.min_rank, round(self.keep * layer.rank)))
            for s, layer in zip(spectra, layers, strict=True)
        ]


@dataclass(frozen=True)
class Budget(CycledRank):
    """The largest singular values of all layers together, within a number of parameters.

    A start with more parameters than that is cut down gently, by a factor a cycle, for what a
    sudden cut loses has to be learned again. A start with fewer grows until the budget is spent.
    Then ranks rest: to trade directions that are trained for new ones in every cycle costs more
    than it finds.

    Args:
        parameters: of all factored layers together in the end; every layer keeps `min_rank`
            directions even where this is too little for that.
        keep: share of the present parameters that a cycle keeps at least, in (0, 1).
    """

    parameters: int = 0
    keep: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parameters < 1:
            raise ValueError(
                f"`Budget(parameters=...)` must be a positive number of parameters for all layers "
                f"together, got {self.parameters}"
            )
        _check_share("Budget(keep=...)", self.keep)

    def room(self, layers: Sequence[Candidates]) -> int:
        # Fuller than this, no layer could keep one direction more on average.
        present = sum(layer.rank * layer.cost for layer in layers)
        missing = self.parameters - present
        return self.grow if missing >= sum(layer.cost for layer in layers) else 0

    def judge(self, clock: Clock, layers: Sequence[Candidates]) -> list[int]:
        spectra = [s.tolist() for s in fetch_spectra(layers)]
        costs = [layer.cost for layer in layers]
        present = sum(layer.rank * layer.cost for layer in layers)
        budget = max(self.parameters, self.keep * present)
        return ranks_for_budget(spectra, costs, budget=budget, min_rank=self.min_rank)


def _check_share(name: str, share: float) -> None:
    if not 0.0 < share < 1.0:
        raise ValueError(f"`{name}` must be in (0, 1), got {share}")


def fetch_spectra(layers: Sequence[Candidates]) -> list[Tensor]:
    """The spectra of all layers on the CPU, by one copy from the device."""
    if not layers:
        return []
    together = torch.cat([layer.sigma for layer in layers]).cpu()
    return list(together.split([layer.sigma.shape[0] for layer in layers]))
