"""What decides how long a step is, once its direction is known."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from rankwise.distributed.sharded import is_sharded, whole
from rankwise.nn.base import frozen_weight, is_transposed, own_class
from rankwise.nn.low_rank import LowRankModule
from rankwise.numerics.manifold import TangentVector
from rankwise.optim.remembered import Shapes
from rankwise.optim.update_rule import State


class StepControl(ABC):
    """Immutable and shared by all parameters; what it remembers of one is in its `state`."""

    default_lr: ClassVar[float]
    """`lr` where none is given."""

    def prepare(
        self,
        layers: Sequence[LowRankModule],
        gradients: Sequence[TangentVector],
        states: Sequence[State],
        *,
        step: int,
    ) -> None:
        """Look at all layers that are about to move, before any `length` of the step.

        A step that was skipped for a non-finite gradient comes again under its number `step`.
        """
        return

    def check_state(self, shapes: Shapes, state: State) -> None:
        """ValueError, naming the entry, for a saved `state` from which no step can go on."""
        return

    @abstractmethod
    def length(
        self,
        layer: LowRankModule,
        norm: Tensor,
        state: State,
        group: dict[str, Any],
        *,
        relative: bool,
    ) -> Tensor | float:
        """The factor of the direction of a low-rank layer.

        An integrator that tries a step again asks again; only the last answer of a step counts.

        Args:
            norm: Frobenius norm of the direction, 0-dim.
            group: the options of the optimizer that hold for the layer.
            relative: whether the direction has no unit, see `UpdateRule`.
        """

    @abstractmethod
    def rate(self, state: State, group: dict[str, Any], *, relative: bool) -> Tensor | float:
        """What the step of a layer just taken multiplied its direction with, after `length`.

        Relative to the weight for `relative` directions, and without regard to their norm: this is
        the pace of what happens beside them.
        """

    @abstractmethod
    def dense_step_(
        self, parameters: list[Tensor], state: dict[Tensor, State], group: dict[str, Any]
    ) -> None:
        """One AdamW step for those dense `parameters` that have a gradient, in place."""


def weight_norm(layer: LowRankModule) -> float:
    """`||W||_F` in units of the factors: of the frozen weight of a linear map where it can be read.

    Else that of a map (m, n) which preserves the variance of its input, `sqrt(m)`. Of a sharded
    weight all processes ask at once.
    """
    weight = None if layer.base is None else _readable(layer.base)
    norm = 0.0 if weight is None else float(whole(weight.norm()))
    return norm / abs(layer.scale) or variance_preserving(layer)


def variance_preserving(layer: LowRankModule) -> float:
    """The norm of a map of that shape (m, n) which preserves variance, in units of the factors."""
    return layer.shape[0] ** 0.5 / abs(layer.scale)


def _readable(base: nn.Module) -> Tensor | None:
    weight: Any = getattr(base, "weight", None)
    if is_sharded(weight):
        linear = own_class(base) is nn.Linear or is_transposed(base)
        return weight if linear and weight.is_floating_point() else None
    plain = frozen_weight(base)
    return None if plain is None else plain[0]
