"""One layer's step, from the gradient of a backward pass to the spectrum where it ends."""

from typing import Any

import torch
from torch import Tensor

from rankwise.integrators.integrator import Integrator, step
from rankwise.nn.factored import Factored
from rankwise.numerics.factors import Factors
from rankwise.numerics.retract import Spectrum
from rankwise.numerics.tangent import Tangent, add, subtract
from rankwise.numerics.transport import transport
from rankwise.optim.batches import Batches
from rankwise.optim.layers import NamedLayer
from rankwise.optim.step_control import StepControl
from rankwise.optim.update_rule import State, UpdateRule


def advance(
    named: NamedLayer,
    rule: UpdateRule,
    control: StepControl,
    integrator: Integrator,
    batches: Batches,
    state: State,
    group: dict[str, Any],
) -> Spectrum:
    """The end of the step, not yet cut, from the gradient of one backward pass.

    At points beyond the first, the direction is what it was there, with what their larger bases
    show of the gradient in addition.
    """
    name, layer = named
    f, gradient = layer.factors(), tangent_gradient(layer)
    D = rule.direction(f, gradient, state)
    start = decayed(f, group)

    def take(core: Tensor) -> Tensor:
        core = rule.core(core)
        norm = torch.linalg.vector_norm(core)
        return control.length(layer, norm, state, group, relative=rule.relative) * core

    def displacement(point: Factors) -> Tangent:
        if point is start:
            return D
        G = batches.gradient(name, layer, point, gradient)
        new = subtract(G, transport(f, point, gradient))
        return add(transport(f, point, D), rule.fresh(point, new, state))

    return step(integrator, start, displacement, take)


def decayed(f: Factors, group: dict[str, Any]) -> Factors:
    """`f` after decoupled weight decay, which only concerns `S`: `||S|| = ||U S V^T||`."""
    return f._replace(S=f.S * (1.0 - group["lr"] * group["weight_decay"]))


def tangent_gradient(layer: Factored) -> Tangent:
    """`P(W) G` from the gradient slots of the last backward pass."""
    dK, dL, dS = layer.gradient()
    assert dK is not None and dL is not None and dS is not None
    return Tangent(dK, dL, dS)


def has_gradient(name: str, layer: Factored) -> bool:
    """Whether the layer took part in the backward pass; ValueError if only a part of it did."""
    present = [g is not None for g in layer.gradient()]
    if any(present) and not all(present):
        raise ValueError(
            f"layer {name!r} has gradients for only a part of its factors; was one of U, S, V "
            "frozen or its `.grad` cleared after the optimizer was made?"
        )
    return all(present)
