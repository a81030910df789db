"""What a trained model's factors say: are the bases bases, and is it at a stationary point?"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.numerics.factors import orthonormality_defect
from rankwise.numerics.given import check_loss
from rankwise.optim.advance import has_gradient
from rankwise.optim.layers import trainable_layers
from rankwise.optim.rest import awake


def orthonormality(model: nn.Module) -> dict[str, float]:
    """`max |Q^T Q - I|` over both bases of each trainable factored layer, by its name."""
    defects = {}
    for name, layer in trainable_layers(model):
        f = layer.factors()
        defects[name] = max(float(orthonormality_defect(Q)) for Q in (f.U, f.V))
    return defects


def stationarity(
    model: nn.Module, loss_of: Callable[[Any], Tensor], batches: Iterable[Any]
) -> dict[str, float]:
    """`||P(W) G||` of each trainable factored layer, for the mean loss over `batches`.

    Zero at a point that no step on the manifold improves to first order. The model is left as it
    was: its training mode is what you set, its gradients are put back.

    Args:
        loss_of: loss of one batch, a 0-dim tensor.
    """
    layers = trainable_layers(model)
    kept = [(p, p.grad) for p in model.parameters()]
    try:
        with awake(layer for _, layer in layers):
            for p, _ in kept:
                p.grad = None
            count = 0
            for batch in batches:
                with torch.enable_grad():
                    loss = loss_of(batch)
                    check_loss("loss_of", loss)
                    loss.backward()
                count += 1
            if not count:
                raise ValueError("`stationarity(batches=...)` needs one batch at least, got none")
            return {
                name: float(layer.tangent_gradient().squared_norm().sqrt()) / count
                for name, layer in layers
                if has_gradient(name, layer)
            }
    finally:
        for p, grad in kept:
            p.grad = grad
