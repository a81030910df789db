"""The optimizer inside what a framework makes of it."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from rankwise.optim.layers import trainable_layers
from rankwise.optim.optimizer import Optimizer
from rankwise.optim.ownership import unwrapped


def rankwise_optimizers(model: nn.Module, optimizers: Iterable[Any], write: str) -> list[Optimizer]:
    """Those of `optimizers` that are rankwise's.

    Raises ValueError, saying what to `write`, if there is none although factors of `model` train,
    and for a layer that none of them has.
    """
    inside = [unwrapped(optimizer) for optimizer in optimizers]
    found = [optimizer for optimizer in inside if isinstance(optimizer, Optimizer)]
    layers = trainable_layers(model)
    if layers and not found:
        kinds = ", ".join(type(optimizer).__name__ for optimizer in inside) or "no optimizer"
        raise ValueError(
            f"the model trains {len(layers)} low-rank layers ({layers[0].name!r}, ...), which only "
            f"rankwise.Optimizer can do, and the trainer has {kinds}: {write}"
        )
    held = {id(layer.U) for optimizer in found for _, layer in optimizer.layers}
    for name, layer in layers:
        if id(layer.U) not in held:
            raise ValueError(
                f"no optimizer of the trainer has layer {name!r}, which would not train: make "
                "`rankwise.Optimizer(model)` of the whole model, after `adapt_` or `factorize_`, "
                "or freeze that layer"
            )
    return found
