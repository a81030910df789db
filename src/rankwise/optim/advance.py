"""One layer's step, from the gradient of a backward pass to where it ends, not yet cut."""

from typing import Any

import torch
from torch import Tensor

from rankwise.integrators.integrator import step
from rankwise.nn.factored import Factored
from rankwise.nn.low_rank import LowRankModule
from rankwise.numerics.manifold import Displaced, P
from rankwise.numerics.tangent import add, subtract
from rankwise.optim.batches import Batches
from rankwise.optim.moving import Moving
from rankwise.optim.step_control import StepControl
from rankwise.optim.update_rule import UpdateRule


def advance(moving: Moving, rule: UpdateRule, control: StepControl, batches: Batches) -> Displaced:
    """The end of the step, not yet cut, from the gradient of one backward pass.

    At points beyond the first, the direction is what it was there, with what their larger bases
    show of the gradient in addition.
    """
    _, name, layer, f, gradient, state, group, integrator, waited = moving
    D = rule.direction(f, gradient, state)
    start = decayed(f, group, waited)

    def take(core: Tensor) -> Tensor:
        core = rule.core(core)
        norm = torch.linalg.vector_norm(core)
        return waited * control.length(layer, norm, state, group, relative=rule.relative) * core

    def displacement(point: Any) -> Any:
        if point is start:
            return D
        # Only matrices have integrators of several points.
        assert isinstance(layer, Factored)
        G = batches.gradient(name, layer, point, gradient)
        new = subtract(G, gradient.transport(f, point))
        return add(D.transport(f, point), rule.fresh(point, new, state))

    return step(integrator, start, displacement, take)


def decayed(f: P, group: dict[str, Any], steps: int = 1) -> P:
    """`f` after decoupled weight decay, which only concerns the core: it has the norm of `W`."""
    return f.scaled((1.0 - group["lr"] * group["weight_decay"]) ** steps)


def has_gradient(name: str, layer: LowRankModule) -> bool:
    """Whether the layer took part in the backward pass; ValueError if only a part of it did."""
    names = layer.point_type._fields
    held = zip(names, layer.factor_parameters(), strict=True)
    present = [p.grad is not None for name, p in held if name not in layer.resting]
    if any(present) and not all(present):
        raise ValueError(
            f"layer {name!r} has gradients for only a part of its factors; was one of "
            f"{', '.join(names)} frozen or its `.grad` cleared after the "
            "optimizer was made?"
        )
    return all(present)
