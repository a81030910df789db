"""What the next backward passes leave out, for nothing of it would be used."""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from rankwise.integrators.integrator import Integrator
from rankwise.nn.low_rank import LowRankModule
from rankwise.optim.layers import NamedLayer
from rankwise.optim.moving import Moving
from rankwise.optim.ownership import owner_of
from rankwise.optim.update_rule import State

AWAKE: frozenset[str] = frozenset()
BASES = frozenset({"U", "V"})
INPUT = frozenset({"V"})

WITHOUT_INPUT = "without_input"
"""Where a layer's state counts its passes since the last one that kept the input."""


def let_rest(
    layers: Iterable[NamedLayer],
    states: Mapping[Tensor, State],
    integrator: Integrator,
    step: int,
    every: int,
) -> None:
    """Tell `layers` which gradients step number `step` has no need of.

    With `every` > 1 a layer forms `dL`, and keeps its input for it, in one step of so many; layers
    take turns. One that was in no pass of its turn does so when it is in one again.
    """
    for place, (_, layer) in enumerate(layers):
        if not layer.can_rest:
            continue
        if not integrator.moves_bases:
            layer.resting = BASES
            continue
        missed = states.get(layer.U, {}).get(WITHOUT_INPUT, 0) >= every - 1
        layer.resting = AWAKE if missed or (step - 1 + place) % every == 0 else INPUT


def count_inputs(present: Iterable[Moving]) -> None:
    """Count the passes in which the layers of a step have kept no input."""
    for m in present:
        if m.layer.resting == INPUT:
            m.state[WITHOUT_INPUT] = m.state.get(WITHOUT_INPUT, 0) + 1
        elif m.layer.resting == AWAKE:
            m.state.pop(WITHOUT_INPUT, None)


@contextmanager
def awake(layers: Iterable[LowRankModule]) -> Iterator[None]:
    """Passes in here, which are for no step, form all gradients."""
    rested = [(layer, layer.resting) for layer in layers]
    try:
        for layer, _ in rested:
            layer.resting = AWAKE
        yield
    finally:
        for layer, resting in rested:
            layer.resting = resting


def wake(layers: Iterable["weakref.ref[LowRankModule]"]) -> None:
    """All gradients again, when the optimizer of `layers` is gone and no other one has them."""
    for reference in layers:
        layer = reference()
        if layer is not None and owner_of(layer) is None:
            layer.resting = AWAKE
