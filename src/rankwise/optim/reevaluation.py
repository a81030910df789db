"""Integrators whose points are different matrices: the model is run again at each of them.

All layers go from point to point together, for the gradient of each depends on where the others
are. The closure has to be the whole of the step's loss: one batch, or a loop over several.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from rankwise.integrators.integrator import Integrator
from rankwise.nn.low_rank import LowRankModule
from rankwise.numerics.manifold import Displaced
from rankwise.optim.advance import decayed
from rankwise.optim.step_control import StepControl
from rankwise.optim.update_rule import State


def advance_together(
    layers: Sequence[LowRankModule],
    control: StepControl,
    integrator: Integrator,
    states: Sequence[State],
    groups: Sequence[dict[str, Any]],
    evaluate: Callable[[], bool],
) -> list[Displaced] | None:
    """The ends of all layers' steps, not yet cut; the layers are left where they were.

    `evaluate()` puts the gradients at the present factors into their slots and returns whether all
    of them are finite; None is returned where they are not. Its first call was made before.
    """
    starts = [layer.factors() for layer in layers]
    starts = [f._make(t.clone() for t in f) for f in starts]
    gradients = [layer.tangent_gradient() for layer in layers]
    lengths = [
        control.length(layer, xi.squared_norm().sqrt(), state, group, relative=False)
        for layer, xi, state, group in zip(layers, gradients, states, groups, strict=True)
    ]
    stages = [integrator.stages(decayed(f, group)) for f, group in zip(starts, groups, strict=True)]
    for stage in stages:
        next(stage)
    try:
        while True:
            ends, points = [], []
            for layer, stage, h in zip(layers, stages, lengths, strict=True):
                xi: Any = layer.tangent_gradient()
                try:
                    points.append(stage.send(xi.like(h * xi.K, h * xi.L, h * xi.C)))
                except StopIteration as end:
                    ends.append(end.value)
            if ends:
                return ends
            for layer, point in zip(layers, points, strict=True):
                layer.set_factors_(point)
            if not evaluate():
                return None
    finally:
        for layer, f in zip(layers, starts, strict=True):
            layer.set_factors_(f)


def check_deterministic(model: nn.Module) -> None:
    """ValueError if a dropout layer is active: every pass would be of another network."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise ValueError(
                f"an integrator that runs the model again at every point needs the same network "
                f"each time, but the dropout layer {name!r} is active (p = {module.p}). Set it to "
                "0, call `model.eval()`, or use an integrator of one backward pass "
                "(ParallelBUG, AugmentedBUG, AugmentedPSI)."
            )
