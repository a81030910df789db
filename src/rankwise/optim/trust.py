"""Steps by a learning rate, measured by the weight that they change.

A change of a weight is large or small against the weight. So a rule whose directions have no unit
(Adam, Spectral) moves a layer by `lr * ||W||_F` per unit of its direction, and one learning rate
serves layers and models whose weights differ in size. And no step is longer than
`max_step * ||W||_F`: beyond that, the loss that the gradient described is left behind. A schedule
keeps its shape: what is limited is the rate at its peak, and a step at a tenth of the peak rate is
a tenth as long. Whatever the rate, training then behaves as at the highest one that is allowed.

Relative steps are the idea of LARS (You et al., 2017) and of Fromage (Bernstein et al., 2020).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from rankwise.nn.low_rank import LowRankModule
from rankwise.optim.dense import adamw_
from rankwise.optim.remembered import Shapes, check_size
from rankwise.optim.step_control import StepControl, weight_norm
from rankwise.optim.update_rule import State

DEFAULT_LR = 3e-3


@dataclass(frozen=True)
class Trust(StepControl):
    """`lr` times the norm of the weight, at most `max_step` of it; dense parameters by AdamW."""

    default_lr: ClassVar[float] = DEFAULT_LR

    def check_state(self, shapes: Shapes, state: State) -> None:
        if "weight_norm" in state:
            check_size("weight_norm", state["weight_norm"])

    def length(
        self,
        layer: LowRankModule,
        norm: Tensor,
        state: State,
        group: dict[str, Any],
        *,
        relative: bool,
    ) -> Tensor | float:
        # No host synchronisation after the first step.
        lr, peak, max_step = group["lr"], group["peak_lr"], group["max_step"]
        if "weight_norm" not in state:
            state["weight_norm"] = weight_norm(layer)
        weight = state["weight_norm"]
        unit = weight if relative else 1.0
        if peak <= 0 or max_step == float("inf"):
            return lr * unit
        longest = max_step * weight / peak
        return (longest / norm).clamp_max(unit) * lr

    def rate(self, state: State, group: dict[str, Any], *, relative: bool) -> float:
        # At its peak as large as the longest step at most: like steps, it forgives a high rate.
        lr, peak = float(group["lr"]), float(group["peak_lr"])
        return lr * min(1.0, group["max_step"] / peak) if peak > 0 else 0.0

    def dense_step_(
        self, parameters: list[Tensor], state: dict[Tensor, State], group: dict[str, Any]
    ) -> None:
        adamw_(parameters, state, group)
