"""How many parameters a model has, and how many of them train."""

import math
from typing import NamedTuple

from torch import nn

from rankwise.nn.base import is_linear, is_plain, linear_shape
from rankwise.nn.low_rank import low_rank_layers


class ParameterCount(NamedTuple):
    """Numbers of parameters; a parameter that occurs several times counts once."""

    total: int
    factors: int
    """In the factors of low-rank layers that train."""
    dense: int
    """Trainable ones that are not factors."""

    @property
    def trainable(self) -> int:
        return self.factors + self.dense


def count_parameters(model: nn.Module) -> ParameterCount:
    """Total, factor and dense trainable parameters of `model` at its present ranks."""
    own = {id(p) for layer in low_rank_layers(model).values() for p in layer.factor_parameters()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    return ParameterCount(
        total=total_parameters(model),
        factors=sum(p.numel() for p in trainable if id(p) in own),
        dense=sum(p.numel() for p in trainable if id(p) not in own),
    )


def total_parameters(model: nn.Module) -> int:
    """All parameters; a quantised weight counts as many as the matrix that it stands for."""
    packed = {
        id(module.weight): math.prod(linear_shape(module))
        for module in model.modules()
        if is_linear(module) and not is_plain(module.weight)
    }
    return sum(packed.get(id(p), p.numel()) for p in model.parameters())


def factor_parameters(m: int, n: int, rank: int) -> int:
    """Numbers held by `U` (m, r), `S` (r, r) and `V` (n, r)."""
    return rank * (m + n + rank)
