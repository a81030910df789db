"""Plain layers of torch around given weights; a bias that is frozen stays so."""

from typing import Any

from torch import Tensor, nn


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear map with this weight (out, in) and bias (out,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    return _filled(layer, weight, bias)


def convolution(
    kind: type[nn.Module], kernels: Tensor, bias: Tensor | None, **moves: tuple[int, ...]
) -> nn.Module:
    """A convolution with these kernels (out, in, ...), stride, padding and dilation."""
    out, into, *size = kernels.shape
    layer = kind(into, out, tuple(size), bias=bias is not None, device="meta", **moves)
    return _filled(layer, kernels, bias)


def _filled(layer: Any, weight: Tensor, bias: Tensor | None) -> Any:
    layer.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return layer
