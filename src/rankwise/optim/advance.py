"""One layer's step, from the gradient of a backward pass to where it ends, not yet cut."""

from typing import Any

import torch
from torch import Tensor

from rankwise.integrators.integrator import Integrator, step
from rankwise.nn.factored import Factored
from rankwise.nn.low_rank import LowRankModule
from rankwise.numerics.manifold import Displaced, P
from rankwise.numerics.tangent import add, subtract
from rankwise.optim.batches import Batches
from rankwise.optim.layers import NamedLayer
from rankwise.optim.step_control import StepControl
from rankwise.optim.update_rule import State, UpdateRule


def advance(
    named: NamedLayer,
    gradient: Any,
    rule: UpdateRule,
    control: StepControl,
    integrator: Integrator,
    batches: Batches,
    state: State,
    group: dict[str, Any],
) -> Displaced:
    """The end of the step, not yet cut, from the gradient of one backward pass.

    At points beyond the first, the direction is what it was there, with what their larger bases
    show of the gradient in addition.
    """
    name, layer = named
    f = layer.factors()
    D = rule.direction(f, gradient, state)
    start = decayed(f, group)

    def take(core: Tensor) -> Tensor:
        core = rule.core(core)
        norm = torch.linalg.vector_norm(core)
        return control.length(layer, norm, state, group, relative=rule.relative) * core

    def displacement(point: Any) -> Any:
        if point is start:
            return D
        # Only matrices have integrators of several points.
        assert isinstance(layer, Factored)
        G = batches.gradient(name, layer, point, gradient)
        new = subtract(G, gradient.transport(f, point))
        return add(D.transport(f, point), rule.fresh(point, new, state))

    return step(integrator, start, displacement, take)


def decayed(f: P, group: dict[str, Any]) -> P:
    """`f` after decoupled weight decay, which only concerns the core: it has the norm of `W`."""
    return f.scaled(1.0 - group["lr"] * group["weight_decay"])


def has_gradient(name: str, layer: LowRankModule) -> bool:
    """Whether the layer took part in the backward pass; ValueError if only a part of it did."""
    present = [g is not None for g in layer.gradient()]
    if any(present) and not all(present):
        raise ValueError(
            f"layer {name!r} has gradients for only a part of its factors; was one of "
            f"{', '.join(layer.point_type._fields)} frozen or its `.grad` cleared after the "
            "optimizer was made?"
        )
    return all(present)
