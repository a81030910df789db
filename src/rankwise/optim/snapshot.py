"""A copy of all that is trained and remembered, to go back to."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankwise.optim.continuing import copied
from rankwise.optim.layers import NamedLayer

States = Mapping[Tensor, dict[str, Any]]


class Snapshot(NamedTuple):
    """Where an optimizer was."""

    points: list[Any]
    """The factors of each layer."""
    dense: list[tuple[Tensor, Tensor]]
    """Each other parameter, and what it was."""
    states: dict[Tensor, dict[str, Any]]

    def restore_(self, layers: Iterable[NamedLayer], states: Any) -> None:
        """Put everything back; the snapshot can be used again."""
        for (_, layer), point in zip(layers, self.points, strict=True):
            layer.set_factors_(point)
        with torch.no_grad():
            for p, value in self.dense:
                p.copy_(value)
        states.clear()
        states.update({p: copied(state) for p, state in self.states.items()})


def snapshot(layers: Iterable[NamedLayer], dense: Iterable[Tensor], states: States) -> Snapshot:
    """A copy of the factors of `layers`, of `dense` parameters, and of the optimizer's `states`."""
    points = [layer.factors() for _, layer in layers]
    return Snapshot(
        [point._make(t.clone() for t in point) for point in points],
        [(p, p.detach().clone()) for p in dense],
        {p: copied(state) for p, state in states.items()},
    )
