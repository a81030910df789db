"""The trust region: how far a layer may move in one step, relative to its weight.

A rate that is too high makes steps that are no longer small against the weight they change, and
the loss that the gradient described is left behind. So a step is at most `max_step * ||W||_F`
long. For adapters `W` is the frozen weight, whose norm is known; without a base it is the factors'
own. A schedule keeps its shape: what is limited is the rate at its peak, and a step at a tenth of
the peak rate is a tenth as long. Whatever the rate, training then behaves as at the highest rate
that the region allows. Relative steps are the idea of LARS (You et al., 2017) and of Fromage
(Bernstein et al., 2020); here they bound, they do not set.
"""

from typing import Any

import torch
from torch import Tensor

from rankwise.nn.base import frozen_weight
from rankwise.nn.linear import LowRankLinear
from rankwise.optim.update_rule import State


def step_length(
    layer: LowRankLinear, core: Tensor, state: State, group: dict[str, Any]
) -> Tensor | float:
    """The factor `h <= lr` of a direction with this core; no host synchronisation."""
    lr, peak, max_step = group["lr"], group["peak_lr"], group["max_step"]
    if peak <= 0 or max_step == float("inf"):
        return lr
    longest = max_step * _weight_norm(layer, state)
    return (longest / torch.linalg.vector_norm(core)).clamp_max(peak) * (lr / peak)


def _weight_norm(layer: LowRankLinear, state: State) -> Tensor:
    """`||W||_F` in units of `U S V^T`."""
    if layer.base is None:
        return torch.linalg.matrix_norm(layer.S.detach())
    if "weight_norm" not in state:
        plain = frozen_weight(layer.base)
        norm = layer.S.new_tensor(float("inf")) if plain is None else plain[0].norm().to(layer.S)
        state["weight_norm"] = norm / abs(layer.scale)
    return state["weight_norm"]
