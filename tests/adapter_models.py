"""A small network in float64 and adapters of chosen ranks on it."""

import torch
from torch import nn

import rankwise as rw
from rankwise.nn.low_rank import low_rank_layers
from rankwise.numerics.init import truncated_svd

LAYERS = {"0": (5, 6), "2": (6, 5), "4": (4, 6)}


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    parts = [nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)]
    return nn.Sequential(*parts).double()


def adapted(seed: int, ranks: dict[str, int], scale: float = 1.0) -> nn.Sequential:
    """Adapters of those ranks, 0 for a core of zeros."""
    model = plain()
    rw.adapt_(model, rank=1, select=list(ranks), scale=scale)
    draw = torch.Generator().manual_seed(seed)
    for name, layer in low_rank_layers(model).items():
        if ranks[name]:
            W = torch.randn(*layer.shape, generator=draw, dtype=torch.float64)
            layer.set_factors_(truncated_svd(W, ranks[name]))
    return model


def adapter(seed: int, ranks: dict[str, int], scale: float = 1.0) -> rw.adapters.Adapter:
    return rw.adapters.take(adapted(seed, ranks, scale))
