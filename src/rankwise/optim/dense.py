"""Adam for the parameters that are not factors."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


def adamw_(
    parameters: list[Tensor], state: dict[Tensor, dict[str, Any]], group: dict[str, Any]
) -> None:
    """One AdamW step for those `parameters` that have a gradient, on torch's own kernel.

    `state` keeps the moments.
    """
    pairs = [(p, p.grad) for p in parameters if p.grad is not None]
    parameters = [p for p, _ in pairs]
    for p in parameters:
        if not state[p]:
            state[p].update(
                step=torch.tensor(0.0),
                exp_avg=torch.zeros_like(p),
                exp_avg_sq=torch.zeros_like(p),
            )
    if parameters:
        adamw(
            parameters,
            [g for _, g in pairs],
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


def adam_direction(
    gradient: Tensor, state: dict[str, Any], *, betas: tuple[float, float], eps: float
) -> Tensor:
    """`m / (sqrt(v) + eps)` with corrected moments: what AdamW multiplies with its rate."""
    if "step" not in state:
        state.update(
            step=0, exp_avg=torch.zeros_like(gradient), exp_avg_sq=torch.zeros_like(gradient)
        )
    state["step"] += 1
    m = state["exp_avg"].lerp_(gradient, 1 - betas[0]) / (1 - betas[0] ** state["step"])
    v = state["exp_avg_sq"].lerp_(gradient.square(), 1 - betas[1])
    return m / (v / (1 - betas[1] ** state["step"])).sqrt_().add_(eps)
