"""A frozen linear map in eight bits: int8 with one scale a row.

Inputs are not rounded, neither in training nor in evaluation. The weight is multiplied out for each
product, in the backward pass once more, so that no copy of it waits there in floating point.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function


class Int8Product(Function):
    """`x W^T + b` for `W = scale * weight`; differentiable in `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return nn.functional.linear(x, _dense(weight, scale, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale = ctx.saved_tensors
        return dy @ _dense(weight, scale, dy.dtype), None, None, None


class Int8Linear(nn.Module):
    """Takes the place of `layer`, of whose weight each row becomes 127 steps to either side."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        W = layer.weight.detach()
        scale = W.abs().amax(1, keepdim=True).clamp_min(torch.finfo(W.dtype).tiny) / 127
        self.weight = nn.Parameter((W / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        y: Tensor = Int8Product.apply(x, self.weight, self.scale, bias)
        return y

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def _dense(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (weight * scale).to(dtype)
