"""Looks after the layers of one optimizer, as its guard says."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankwise.distributed.sharded import all_finite, finite_here
from rankwise.distributed.team import Alone
from rankwise.nn.low_rank import LowRankModule
from rankwise.numerics.factors import orthonormality_defect
from rankwise.numerics.svd import detours
from rankwise.optim.bounds import bound_that_holds
from rankwise.optim.guard import Guard, Incidents
from rankwise.optim.layers import NamedLayer
from rankwise.optim.rank_rule import RankRule
from rankwise.optim.snapshot import Snapshot, snapshot
from rankwise.optim.statistics import Statistics
from rankwise.optim.step_control import variance_preserving, weight_norm
from rankwise.optim.together import replicas_of

MEND = (
    "Lower `lr`, clip by `optimizer.clip_gradient_(1.0)`, look at the data of these steps, and go "
    "on from an earlier checkpoint; with `Optimizer(guard=rankwise.check.Guard(rewinds=3))` it "
    "goes back by itself"
)
LONG = 4
"""Examinations after which ranks that stay at a bound are worth a warning."""


class Examined(NamedTuple):
    """What is seen of a layer."""

    defect: float
    """`max |Q^T Q - I|` of its worse basis."""
    norm: float
    """`||U S V^T||_F`."""


class Held(NamedTuple):
    """What an optimizer has beside its layers."""

    dense: Mapping[str, Tensor]
    """Its other parameters, by name."""
    states: Any
    """What it remembers, by parameter."""
    rank_rule: RankRule
    rewound: int
    """How often it has gone back."""


class Watch:
    """Examines `layers`, repairs them, and takes training back.

    What a method returns is what it has met.
    """

    def __init__(self, guard: Guard, layers: Sequence[NamedLayer], statistics: Statistics) -> None:
        self.guard, self._layers, self._statistics = guard, layers, statistics
        self._in_vain = 0
        self._sizes: list[float] = []
        self._good: tuple[int, Snapshot] | None = None
        self._bounded = 0
        self._detours = detours.total()

    def begins(self, held: Callable[[], Held], steps: int) -> None:
        """Before the first step that is taken here, after `steps` elsewhere."""
        self._in_vain = 0
        self._sizes = [e.norm for e in examined(self._layers)]
        self._keep(held, steps)

    def loaded(self) -> None:
        """Model and optimizer are as they were saved."""
        self._statistics.keep()

    def starts(self) -> None:
        """Before each step: what others have met does not count."""
        self._detours = detours.total()

    def taken(self, held: Callable[[], Held], steps: int) -> Incidents:
        """After a step, the last of so many; FloatingPointError where training cannot go on."""
        self._in_vain = 0
        met = Incidents(detours=detours.total() - self._detours)
        if steps % self.guard.every:
            return met
        found = examined(self._layers)
        now = held()
        # Unlike machines may see the same numbers on either side of a bound.
        team = replicas_of(self._layers) or Alone()
        trouble = team.first_told(self._trouble(found, now))
        if trouble:
            return met.plus(self.back(held, steps, trouble))
        flags = team.agreed([e.defect > self.guard.max_defect for e in found])
        worn = [n for n, flag in enumerate(flags) if flag]
        for n in worn:
            layer = self._layers[n].layer
            layer.set_factors_(layer.factors().orthonormalised())
        self._sizes = [e.norm for e in found]
        mended = self._mend_statistics(steps)
        self._keep(held, steps)
        bounded = self._look_at_ranks(now.rank_rule)
        return met.plus(mended).plus(Incidents(len(worn), bounded=bounded))

    def _look_at_ranks(self, rule: RankRule) -> int:
        bound = bound_that_holds(rule, self._layers)
        self._bounded = self._bounded + 1 if bound else 0
        if self._bounded == LONG:
            warnings.warn(bound, RuntimeWarning, stacklevel=4)
        return int(bool(bound))

    def skipped(self, held: Callable[[], Held], steps: int) -> Incidents:
        """After a step that was not taken; FloatingPointError where training cannot go on."""
        self._in_vain += 1
        met = self._mend_statistics(steps)
        if self._in_vain < self.guard.patience:
            return met
        trouble = f"{self._in_vain} steps in a row had gradients that are not finite or overflow"
        return met.plus(self.back(held, steps, trouble))

    def _mend_statistics(self, steps: int) -> Incidents:
        """A forward pass on a bad batch has left its mark in them."""
        names = self._statistics.mend_()
        if names:
            listed = ", ".join(map(repr, names[:3]))
            warnings.warn(
                f"after step {steps}: {listed} were not finite, and are again what they were when "
                "last examined: look at the data of these steps",
                RuntimeWarning,
                stacklevel=5,
            )
        return Incidents(repaired=len({name.rpartition(".")[0] for name in names}))

    def back(self, held: Callable[[], Held], steps: int, trouble: str) -> Incidents:
        """To the last good state; FloatingPointError where there is none."""
        self._in_vain, now = 0, held()
        if self._good is None or now.rewound >= self.guard.rewinds:
            often = f", and training went back {now.rewound} times" if now.rewound else ""
            raise FloatingPointError(f"after step {steps}: {trouble}{often}. {MEND}")
        after, good = self._good
        good.restore_(self._layers, now.states)
        self._statistics.back_()
        warnings.warn(
            f"after step {steps}: {trouble}. Went back to what was trained in step {after}",
            RuntimeWarning,
            stacklevel=4,
        )
        return Incidents(rewound=1)

    def _keep(self, held: Callable[[], Held], steps: int) -> None:
        now = held()
        self._statistics.keep()
        self._good = None
        if now.rewound < self.guard.rewinds:
            self._good = steps, snapshot(self._layers, now.dense.values(), now.states)

    def _trouble(self, found: Sequence[Examined], held: Held) -> str:
        """What cannot be repaired, "" for nothing."""
        # Both go through what is sharded, together with others, whatever is found here.
        sound = all_finite([*held.dense.values(), *moments(held.states)])
        usual = [
            max(usual_norm(layer, held.states), variance_preserving(layer))
            for _, layer in self._layers
        ]
        sizes = map(max, usual, self._sizes)
        for (name, _), size, e in zip(self._layers, sizes, found, strict=True):
            # NaN compares false.
            if not (e.defect < 0.5 and e.norm < float("inf")):
                return f"the factors of layer {name!r} are no longer finite, or no bases"
            if e.norm > self.guard.growth * size:
                return f"layer {name!r} has exploded, to {e.norm / size:.3g} times its norm"
        return "" if sound else f"{_broken(held)} is not finite"


def _broken(held: Held) -> str:
    """What is not finite on this process."""
    names = (repr(name) for name, t in held.dense.items() if not finite_here(t))
    return next(names, "a moment of the optimizer, or what another process holds,")


def usual_norm(layer: LowRankModule, states: Any) -> float:
    """What steps are measured by, in units of the factors; computed once."""
    state = states[layer.U]
    if "weight_norm" not in state:
        state["weight_norm"] = weight_norm(layer)
    norm: float = state["weight_norm"]
    return norm


def examined(layers: Sequence[NamedLayer]) -> list[Examined]:
    """What is seen of each layer; the device is waited for once."""
    numbers = []
    for _, layer in layers:
        f = layer.factors()
        defects = torch.stack([orthonormality_defect(Q) for Q in (f.U, f.V)])
        numbers.append(torch.stack([defects.amax(), f.norm()]))
    if not numbers:
        return []
    first = numbers[0]
    return [Examined(*row) for row in torch.stack([n.to(first) for n in numbers]).tolist()]


def moments(states: Mapping[Tensor, Mapping[str, Any]]) -> Iterator[Tensor]:
    """All floating-point tensors that are remembered."""
    for state in states.values():
        for value in state.values():
            parts = value if isinstance(value, tuple) else (value,)
            yield from (t for t in parts if isinstance(t, Tensor) and t.is_floating_point())
