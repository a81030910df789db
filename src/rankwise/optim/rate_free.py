"""Steps without a learning rate: the distance gone so far over the directions so far.

A good rate for `T` gradient steps is the distance from the start to a solution over the root of the
sum of squared gradient norms. DoG (Ivgi, Hinder and Carmon, 2023) takes the farthest distance that
it has been from its start in place of the one that nobody knows, and the sum so far. Here, for the
layers l of a network and in units of their weights,

    d_t = max_{s <= t} (mean_l ||W_l,s - W_l,0||^2 / ||W_l||^2)^(1/2)
    h_l = w_t d_t ||W_l|| / (||D_l,1||^2 + ... + ||D_l,t||^2)^(1/2)

with the directions `D` of the update rule, and `w_t` the optimizer's `lr` over its peak so far: the
course of a schedule matters, the size of `lr` does not. On the manifold the distance costs a few
thin products; for an adapter that starts at zero it is `||W||`.

Directions without a unit (Adam, Spectral) are divided already by what gradients have been. Of them
the sum is `t max(||D_t||, SMALL)^2`: a step is `d_t / sqrt(t)` long, or shorter where the direction
is, for then noise has left little of it.

A direction with momentum goes on for some steps after it should have turned, and a distance that
grows by half in each of them has then outgrown every sensible one. So `d` grows by no more than
`growth` a step, and only while the gradient still points down the way from the start, all layers
together: `sum_l <G_l, W_l - W_l,0> < 0`, the sign that Prodigy's estimate (Mishchenko and Defazio,
2024) is made of.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rankwise.nn.low_rank import LowRankModule
from rankwise.numerics.given import check_number
from rankwise.numerics.manifold import TangentVector
from rankwise.optim.dense import adamw_
from rankwise.optim.remembered import (
    Shapes,
    check_count,
    check_size,
    check_tensor,
    check_tensors,
    check_triple,
    check_whole,
)
from rankwise.optim.step_control import StepControl, weight_norm
from rankwise.optim.update_rule import State

SMALL = 0.5
REMEMBERED = ("origin", "size", "farthest", "root", "taken", "before")


@dataclass(frozen=True)
class RateFree(StepControl):
    """Distance over gradients on the manifold: neither a rate nor a warm-up to choose.

    Let `lr` decay to zero by a scheduler, as for any rate; its size has no effect. Weight decay and
    `max_step` are made for rates and are refused.

    Args:
        start: distance that is assumed at first, relative to the norm of the weights, in (0, 1). A
            small one costs some steps until it is outgrown, a large one may be too far.
        growth: by which part the distance may grow in one step, > 0.
        dense_lr: rate of AdamW for dense parameters (biases, a new head), which have a usual one.
    """

    start: float = 1e-3
    growth: float = 0.1
    dense_lr: float = 3e-3

    default_lr: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        for name in ("start", "growth", "dense_lr"):
            check_number(f"RateFree({name}=...)", getattr(self, name))
        if not 0.0 < self.start < 1.0:
            raise ValueError(f"`RateFree(start=...)` must be in (0, 1), got {self.start}")
        if not self.growth > 0.0:
            raise ValueError(f"`RateFree(growth=...)` must be positive, got {self.growth}")
        if not 0.0 <= self.dense_lr < float("inf"):
            raise ValueError(
                f"`RateFree(dense_lr=...)` must be finite and not negative, got {self.dense_lr}"
            )

    def prepare(
        self,
        layers: Sequence[LowRankModule],
        gradients: Sequence[TangentVector],
        states: Sequence[State],
        *,
        step: int,
    ) -> None:
        ways = []
        for layer, gradient, state in zip(layers, gradients, states, strict=True):
            if "origin" not in state:
                self._begin(layer, state)
            if state["taken"] != step:
                state["before"], state["taken"] = state["root"], step
            ways.append(_way(layer.factors(), gradient, state))
        before = torch.stack([state["farthest"].to(ways[0].device) for state in states]).amax()
        squares, along = torch.stack([way.to(ways[0].device) for way in ways]).unbind(1)
        gone = squares.mean().sqrt().clamp(before, before * (1 + self.growth))
        farthest = torch.where(along.sum() < 0, gone, before)
        for state in states:
            state["farthest"] = farthest.to(state["farthest"].device)

    def check_state(self, shapes: Shapes, state: State) -> None:
        if not check_whole(REMEMBERED, state):
            return
        check_size("size", state["size"])
        check_count("taken", state["taken"], 1)
        for name in ("farthest", "root", "before"):
            check_tensor(name, state[name], (), positive=True)
        if state["origin"] != ():
            _check_origin(shapes, state["origin"])

    def length(
        self,
        layer: LowRankModule,
        norm: Tensor,
        state: State,
        group: dict[str, Any],
        *,
        relative: bool,
    ) -> Tensor | float:
        if relative:
            root = norm.clamp_min(SMALL) * state["taken"] ** 0.5
            return state["farthest"] * (state["size"] * _course(group)) / root
        # No sum of squares, which would overflow where a norm does not.
        state["root"] = torch.hypot(state["before"], norm)
        return self.rate(state, group, relative=False)

    def rate(self, state: State, group: dict[str, Any], *, relative: bool) -> Tensor:
        farthest: Tensor = state["farthest"]
        if relative:
            return farthest * (_course(group) / state["taken"] ** 0.5)
        root = state["root"].clamp_min(torch.finfo(state["root"].dtype).tiny)
        return farthest * (state["size"] * _course(group)) / root

    def dense_step_(
        self, parameters: list[Tensor], state: dict[Tensor, State], group: dict[str, Any]
    ) -> None:
        adamw_(parameters, state, {**group, "lr": self.dense_lr * _course(group)})

    def _begin(self, layer: LowRankModule, state: State) -> None:
        f = layer.factors()
        # There is nothing to keep of an adapter that starts at zero.
        state["origin"] = tuple(t.clone() for t in f) if bool(f.norm() > 0) else ()
        state["size"] = weight_norm(layer)
        state["farthest"] = f.U.new_full((), self.start)
        state["root"] = f.U.new_zeros(())
        state["taken"] = 0


def _way(f: Any, gradient: TangentVector, state: State) -> Tensor:
    """`||W - W0||^2 / ||W||^2` and `<G, W - W0>`, (2,)."""
    gone, along = f.norm(), gradient.along(f)
    if state["origin"]:
        origin = f._make(state["origin"])
        gone, along = f.distance(origin), along - gradient.inner_product(f, origin)
    return torch.stack([(gone / state["size"]).square(), along])


def _check_origin(shapes: Shapes, origin: Any) -> None:
    """The ranks are those of the start."""
    check_triple("origin", origin)
    ranks = [t.shape[-1] if t.ndim else 0 for t in origin[::2]]
    core = (*ranks, *shapes.core[2:])
    check_tensors("origin", origin, ((shapes.U[0], ranks[0]), core, (shapes.V[0], ranks[1])))


def _course(group: dict[str, Any]) -> float:
    """The learning rate over its peak so far."""
    peak = float(group["peak_lr"])
    return float(group["lr"]) / peak if peak > 0.0 else 0.0
