"""Steps without a learning rate: the distance gone so far over the directions so far.

A good rate for `T` gradient steps is the distance from the start to the solution over the root of
the sum of squared gradient norms. DoG (Ivgi, Hinder and Carmon, 2023) takes the farthest distance
that it has been from its start in place of the one that nobody knows, and the sum so far:

    h_t = max(eps, max_{s <= t} ||W_s - W_0||) / sqrt(||D_1||^2 + ... + ||D_t||^2)

The distance grows quickly while steps agree, and hardly when they only scatter. Here it is measured
for each layer by itself (their L-DoG), on the manifold: `||U S V^T - U0 S0 V0^T||` costs a few thin
products, and for an adapter that starts at zero it is `||S||`. `D` is the direction of the update
rule, with momentum and preconditioned, instead of the gradient; a schedule multiplies `h` by `lr`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rankwise.nn.factored import Factored
from rankwise.numerics.factors import Factors, distance
from rankwise.optim.dense import adam_direction
from rankwise.optim.step_control import StepControl, weight_norm
from rankwise.optim.update_rule import State


@dataclass(frozen=True)
class RateFree(StepControl):
    """Distance over gradients, layer by layer, in the norm of the manifold; `lr` is 1 by default.

    Give `lr` a warm-up and a decay to zero by a scheduler, as for any rate. Dense parameters take
    Adam's direction at a rate of the same kind, each tensor its own. Weight decay has no rate to be
    multiplied with and is refused.

    Args:
        start: distance that is assumed at first, relative to the norm of the weight, in (0, 1).
            What it is hardly matters: it is outgrown within a few steps.
    """

    start: float = 1e-3

    default_lr: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.start < 1.0:
            raise ValueError(f"`RateFree(start=...)` must be in (0, 1), got {self.start}")

    def length(
        self, layer: Factored, norm: Tensor, state: State, group: dict[str, Any], *, relative: bool
    ) -> Tensor | float:
        f = layer.factors()
        if "origin" not in state:
            # There is nothing to keep of an adapter that starts at zero.
            state["origin"] = tuple(t.clone() for t in f) if bool(f.S.any()) else ()
            self._begin(state, norm, weight_norm(layer))
        origin = state["origin"]
        gone = distance(f, Factors(*origin)) if origin else torch.linalg.vector_norm(f.S)
        return group["lr"] * _distance_over_norms(state, gone, norm)

    def dense_step_(
        self, parameters: list[Tensor], state: dict[Tensor, State], group: dict[str, Any]
    ) -> None:
        for p in parameters:
            if p.grad is None:
                continue
            own = state[p]
            D = adam_direction(p.grad, own, betas=group["betas"], eps=group["eps"])
            norm = torch.linalg.vector_norm(D)
            if "origin" not in own:
                own["origin"] = p.clone()
                self._begin(own, norm, float(p.norm()) or p.numel() ** 0.5)
            gone = torch.linalg.vector_norm(p - own["origin"])
            p.sub_(D * (group["lr"] * _distance_over_norms(own, gone, norm)))

    def _begin(self, state: State, norm: Tensor, size: float) -> None:
        state["farthest"] = torch.full_like(norm, self.start * size)
        state["squares"] = torch.zeros_like(norm)


def _distance_over_norms(state: State, gone: Tensor, norm: Tensor) -> Tensor:
    state["farthest"] = torch.maximum(state["farthest"], gone.to(norm.dtype))
    state["squares"] = state["squares"] + norm.square()
    tiny = torch.finfo(norm.dtype).tiny
    return state["farthest"] / state["squares"].clamp_min(tiny).sqrt()
