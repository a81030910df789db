"""What a step knows of each layer before it, and what it leaves to do once all ranks are chosen."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from torch import Tensor

from rankwise.integrators.integrator import Integrator
from rankwise.nn.low_rank import LowRankModule
from rankwise.numerics.manifold import Displaced, Mode
from rankwise.optim.rank_rule import Candidates
from rankwise.optim.update_rule import State, UpdateRule

WAITED = "waited"
"""Where a layer's state counts the steps in which it has stayed where it is."""

Shaping: TypeAlias = Callable[[Tensor], Tensor]
"""What becomes of a layer's singular values: a function from some to as many."""


class Cut(NamedTuple):
    """What is decided of a layer's end."""

    ranks: Sequence[int]
    """Of its modes."""
    shaping: Shaping


class Moving(NamedTuple):
    """A layer that takes part in a step."""

    place: int
    """Among all layers that the optimizer trains."""
    name: str
    layer: LowRankModule
    point: Any
    """Its factors before the step."""
    gradient: Any
    state: State
    group: dict[str, Any]
    integrator: Integrator
    waited: int
    """Steps since it last moved, this one included: so many times as long is its step."""

    def candidates(self, mode: Mode, sigma: Tensor) -> Candidates:
        return Candidates(sigma, mode.rank, mode.shape, self.layer.base is None, mode.cost)


class Arrival(Protocol):
    """Where layers end, exact and not yet cut."""

    def candidates(self) -> dict[int, list[Candidates]]:
        """By place of the layer, those of each mode."""
        ...

    def land(self, rule: UpdateRule, cuts: Mapping[int, Cut]) -> None:
        """Cut every layer, by place; carry along what `rule` remembers, and set the factors."""
        ...


class AloneArrival(NamedTuple):
    """One layer of any kind."""

    moving: Moving
    end: Displaced

    def candidates(self) -> dict[int, list[Candidates]]:
        pairs = zip(self.moving.point.modes(), self.end.spectra(), strict=True)
        return {self.moving.place: [self.moving.candidates(mode, s) for mode, s in pairs]}

    def land(self, rule: UpdateRule, cuts: Mapping[int, Cut]) -> None:
        m = self.moving
        cut = self.end.cut_to(*cuts[m.place])
        # As the layer will hold them: products round by how their factors lie in memory.
        new = cut._make(t.contiguous() for t in cut)
        rule.transport(m.point, new, m.gradient, m.state)
        m.state.pop(WAITED, None)
        m.layer.set_factors_(new)
