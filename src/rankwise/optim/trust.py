"""How long a step is, measured by the weight that it changes.

A change of a weight is large or small against the weight. So a rule whose directions have no unit
(Adam, Spectral) moves a layer by `lr * ||W||_F` per unit of its direction, and one learning rate
serves layers and models whose weights differ in size. And no step is longer than
`max_step * ||W||_F`: beyond that, the loss that the gradient described is left behind. A schedule
keeps its shape: what is limited is the rate at its peak, and a step at a tenth of the peak rate is
a tenth as long. Whatever the rate, training then behaves as at the highest one that is allowed.

Relative steps are the idea of LARS (You et al., 2017) and of Fromage (Bernstein et al., 2020).
"""

from typing import Any

from torch import Tensor

from rankwise.nn.base import frozen_weight
from rankwise.nn.factored import Factored
from rankwise.optim.update_rule import State


def step_length(
    layer: Factored, norm: Tensor, state: State, group: dict[str, Any], *, relative: bool
) -> Tensor | float:
    """The factor of a direction of this norm; no host synchronisation after the first step."""
    lr, peak, max_step = group["lr"], group["peak_lr"], group["max_step"]
    if "weight_norm" not in state:
        state["weight_norm"] = weight_norm(layer)
    weight = state["weight_norm"]
    unit = weight if relative else 1.0
    if peak <= 0 or max_step == float("inf"):
        return lr * unit
    longest = max_step * weight / peak
    return (longest / norm).clamp_max(unit) * lr


def weight_norm(layer: Factored) -> float:
    """`||W||_F` in units of `U S V^T`: of the frozen weight where it can be read.

    Else that of a map (m, n) which preserves the variance of its input, `sqrt(m)`.
    """
    plain = None if layer.base is None else frozen_weight(layer.base)
    norm = 0.0 if plain is None else float(plain[0].norm())
    return (norm or layer.shape[0] ** 0.5) / abs(layer.scale)
