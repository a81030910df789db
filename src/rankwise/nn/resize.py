"""The only place where the shape of a live parameter changes."""

import torch
from torch import Tensor, nn


def set_factor_(module: nn.Module, name: str, value: Tensor) -> None:
    """Give the parameter the value and shape of `value`, and drop a gradient of the old shape.

    The `Parameter` object, its hooks and its place in optimizers survive. Autograd keeps one
    accumulator a leaf, with the leaf's shape, as long as any earlier loss is alive, be it in a list
    for logging; only a change of dtype makes it forget that one, so that later losses get gradients
    of the new shape. Hence the detour by an empty tensor of another dtype.

    The compiler of torch 2.9 takes parameters to be what they were as long as their module's
    dictionary is not written to, and would run the graph of the old shape. Hence that by None.
    """
    held = module._parameters
    parameter = held[name]
    assert parameter is not None
    if value.shape == parameter.shape:
        # Without the cost of a `no_grad` block; the version is counted all the same.
        parameter.detach().copy_(value)
        return
    target = value.detach().to(parameter.device, parameter.dtype, copy=True).contiguous()
    other = torch.float64 if parameter.dtype != torch.float64 else torch.float32
    parameter.grad = None
    parameter.data = torch.empty(0, dtype=other, device=parameter.device)
    parameter.data = target
    held[name] = None
    held[name] = parameter
