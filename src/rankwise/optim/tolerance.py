"""Rank rules by tolerance: each layer is judged by its own singular values."""

from collections.abc import Sequence
from dataclasses import dataclass

from rankwise.numerics.given import check_integer, check_number
from rankwise.numerics.truncate import rank_above, rank_for_tolerance
from rankwise.optim.rank_rule import (
    Candidates,
    Clock,
    CycledRank,
    RankRule,
    capped,
    check_bounds,
    check_share,
    fetch,
)


@dataclass(frozen=True, kw_only=True)
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
        check_number("Tolerance(rtol=...)", self.rtol)
        if not 0.0 <= self.rtol < 1.0:
            raise ValueError(f"`Tolerance(rtol=...)` must be in [0, 1), got {self.rtol}")
        check_share("Tolerance(keep=...)", self.keep)

    def judge(self, clock: Clock, layers: Sequence[Candidates]) -> list[int]:
        rtol = self.rtol * min(1.0, clock.decay / (self.rest / 2)) if self.rest else self.rtol
        spectra = fetch([layer.sigma for layer in layers])
        return [
            rank_above(s, rtol=rtol, min_rank=max(self.min_rank, round(self.keep * layer.rank)))
            for s, layer in zip(spectra, layers, strict=True)
        ]


@dataclass(frozen=True)
class TailTolerance(RankRule):
    """The papers' rule: the smallest rank whose discarded tail is within `rtol` of the norm.

    Bases grow to twice the rank in the first step of every cycle and are cut in its last; with
    `every = 1`, in each step, as in DLRT and GeoLoRA. With `order = 2` the tolerance falls with the
    square of the learning rate, so that what all cuts together take away stays bounded and
    stochastic gradients converge (Hnatiuk, Kusch, Kusch, Gauger and Walther, 2024).

    Under gradient noise the rank depends on where it starts and on the step size: for training,
    `Tolerance` is the better choice.

    Args:
        rtol: tolerance at the peak learning rate, relative to the layer's Frobenius norm, in
            [0, 1); "tau" in the papers.
        order: the tolerance falls with this power of the learning rate over its peak, >= 0.
        every: steps from cut to cut, >= 1.
        min_rank, max_rank: bounds for every layer.
    """

    rtol: float = 0.1
    order: float = 0.0
    every: int = 1
    min_rank: int = 1
    max_rank: int | None = None

    def __post_init__(self) -> None:
        check_number("TailTolerance(rtol=...)", self.rtol)
        check_number("TailTolerance(order=...)", self.order)
        check_integer("TailTolerance(every=...)", self.every)
        if not 0.0 <= self.rtol < 1.0:
            raise ValueError(f"`TailTolerance(rtol=...)` must be in [0, 1), got {self.rtol}")
        if not self.order >= 0.0:
            raise ValueError(f"`TailTolerance(order=...)` must not be negative, got {self.order}")
        if self.every < 1:
            raise ValueError(f"`TailTolerance(every=...)` must be at least 1, got {self.every}")
        check_bounds("TailTolerance", self.min_rank, self.max_rank)

    def may_change(self, clock: Clock) -> bool:
        return clock.step % self.every in (0, 1)

    def ranks(self, clock: Clock, layers: Sequence[Candidates]) -> list[int]:
        if clock.step % self.every == 0:
            rtol = self.rtol * clock.decay**self.order
            spectra = fetch([layer.sigma for layer in layers])
            kept = [rank_for_tolerance(s, rtol=rtol, min_rank=self.min_rank) for s in spectra]
        elif clock.step % self.every == 1:
            kept = [layer.sigma.shape[0] for layer in layers]
        else:
            kept = [layer.rank for layer in layers]
        caps = (capped(layer, self.max_rank) for layer in layers)
        return [min(r, cap) for r, cap in zip(kept, caps, strict=True)]
