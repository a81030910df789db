"""The gradient of a model's output with respect to its input."""

from collections.abc import Callable

import torch
from torch import Tensor


def slope(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient (rows, ...) of the sum of `function(x)` (rows,); see `row_gradients`."""
    point = x.detach().requires_grad_()
    with torch.enable_grad():
        values = function(point)
    return row_gradients(values, point)


def row_gradients(values: Tensor, x: Tensor) -> Tensor:
    """Of `values` (rows,), each a function of its own row, with respect to the leaf `x`.

    Zero where it is not finite, and where there is none: a model that rounds has no gradient, one
    that saturates may have NaN.
    """
    if not values.requires_grad:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(values, x, torch.ones_like(values), materialize_grads=True)
    return torch.where(found.isfinite(), found, 0.0)
