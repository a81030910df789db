"""What the next backward passes leave out, for nothing of it would be used."""

import weakref
from collections.abc import Iterable

from rankwise.integrators.integrator import Integrator
from rankwise.nn.low_rank import LowRankModule
from rankwise.optim.layers import NamedLayer

AWAKE: frozenset[str] = frozenset()
BASES = frozenset({"U", "V"})
INPUT = frozenset({"V"})


def let_rest(layers: Iterable[NamedLayer], integrator: Integrator, step: int, every: int) -> None:
    """Tell `layers` which gradients step number `step` has no need of.

    With `every` > 1 a layer forms `dL`, and keeps its input for it, in one step of so many; layers
    take turns.
    """
    for place, (_, layer) in enumerate(layers):
        if not layer.can_rest:
            continue
        if not integrator.moves_bases:
            layer.resting = BASES
        else:
            layer.resting = AWAKE if (step - 1 + place) % every == 0 else INPUT


def wake(layers: Iterable["weakref.ref[LowRankModule]"]) -> None:
    """All gradients again, when an optimizer is gone."""
    for reference in layers:
        layer = reference()
        if layer is not None:
            layer.resting = AWAKE
