"""Which layers an adapter can be put around, and the adapter itself."""

from typing import Any

import torch
from torch import nn

from rankwise.nn.base import is_linear, linear_shape, own_class
from rankwise.nn.conv import LowRankConv2d
from rankwise.nn.conv1d import LowRankConv1d
from rankwise.nn.embedding import LowRankEmbedding
from rankwise.nn.factored import Factored
from rankwise.nn.linear import LowRankLinear
from rankwise.nn.low_rank import LowRankModule
from rankwise.numerics.factors import Factors
from rankwise.surgery.dense_map import ConvolutionMap, dense_map
from rankwise.surgery.layers import Layer, obstacle

MAPS: dict[type[nn.Module], str] = {
    nn.Embedding: "embedding",
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
}
"""Layers beside linear ones that take an adapter. Subclasses do not: they may compute anything."""


def adapter_for(base: Any, factors: Factors, scale: float) -> Factored:
    """A low-rank layer around `base`, in the mode (train or eval) that `base` is in."""
    return _around(base, factors, scale).train(base.training)


def factor_like(base: nn.Module) -> torch.Tensor:
    """An empty tensor of the type and device that factors on `base` have."""
    weight = base.weight
    assert isinstance(weight, torch.Tensor)
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return torch.empty(0, dtype=dtype, device=weight.device)


def map_kind(module: nn.Module) -> str:
    """One of "linear", "embedding", "conv1d", "conv2d", "" of a layer that takes no adapter."""
    if isinstance(module, LowRankModule):
        return "" if module.base is None else map_kind(module.base)
    return "linear" if is_linear(module) else MAPS.get(own_class(module), "")


def map_shape(module: nn.Module) -> tuple[int, int]:
    """Rows of `U` and of `V` of an adapter around a module that takes one."""
    if is_linear(module):
        return linear_shape(module)
    seen = dense_map(module)
    assert seen is not None
    return seen.shape


def map_obstacle(layer: Layer) -> str:
    """Why no adapter can be put around a layer of a known kind, or ""."""
    if is_linear(layer.module):
        return obstacle(layer)
    seen = dense_map(layer.module)
    assert seen is not None
    return seen.obstacle


def _around(base: Any, factors: Factors, scale: float) -> Factored:
    if is_linear(base):
        return LowRankLinear(factors, base=base, scale=scale)
    if isinstance(base, nn.Embedding):
        return LowRankEmbedding(factors, padding_idx=base.padding_idx, base=base, scale=scale)
    seen = dense_map(base)
    assert isinstance(seen, ConvolutionMap)
    moves: Any = seen.moves()
    if isinstance(base, nn.Conv2d):
        return LowRankConv2d(factors, base=base, scale=scale, **moves)
    on_line = {name: move[0] for name, move in moves.items()}
    return LowRankConv1d(factors, base=base, scale=scale, **on_line)
