"""AdamW for the parameters that are not factors, on torch's own kernel."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from rankwise.distributed.sharded import is_sharded
from rankwise.optim.remembered import check_tensor, check_whole

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def check_state(shape: Sequence[int], state: Mapping[str, Any]) -> None:
    """ValueError, naming the entry, for a saved state from which AdamW cannot go on."""
    if check_whole(MOMENTS, state):
        check_tensor("exp_avg", state["exp_avg"], shape)
        check_tensor("exp_avg_sq", state["exp_avg_sq"], shape, positive=True)
        check_tensor("step", state["step"], (), positive=True)


def adamw_(
    parameters: list[Tensor], state: dict[Tensor, dict[str, Any]], group: dict[str, Any]
) -> None:
    """One AdamW step for those `parameters` that have a gradient; `state` keeps the moments."""
    present = [p for p in parameters if p.grad is not None]
    # Torch's kernel takes many tensors at once, but none of two kinds.
    for kind in (False, True):
        _step_([p for p in present if is_sharded(p) is kind], state, group)


def _step_(
    parameters: list[Tensor], state: dict[Tensor, dict[str, Any]], group: dict[str, Any]
) -> None:
    for p in parameters:
        if MOMENTS[0] not in state[p]:
            state[p].update(
                step=torch.tensor(0.0),
                exp_avg=torch.zeros_like(p),
                exp_avg_sq=torch.zeros_like(p),
            )
    if parameters:
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state[p]["exp_avg"] for p in parameters],
            [state[p]["exp_avg_sq"] for p in parameters],
            [],
            [state[p]["step"] for p in parameters],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
