"""Small networks with factored layers, data for them, and a plain training loop."""

import torch
from torch import Tensor, nn

from rankwise.nn import LowRankLinear
from rankwise.numerics.init import zero_core


def adapter(
    m: int = 8, n: int = 6, rank: int = 2, dtype: torch.dtype = torch.float64
) -> LowRankLinear:
    base = nn.Linear(n, m, dtype=dtype)
    draw = torch.Generator().manual_seed(1)
    return LowRankLinear(zero_core(m, n, rank, like=base.weight, generator=draw), base=base)


def thin_layers(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    first, second = adapter(8, 6, 2, dtype), adapter(7, 8, 3, dtype)
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(7, 2, dtype=dtype))


def batch(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 6, generator=draw, dtype=dtype)
    return x, torch.stack([x[:, 0] * x[:, 1], x.sum(1)], dim=1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[float]:
    losses = []
    for i in range(first, last):
        x, y = batch(i, next(model.parameters()).dtype)
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def dense_of(model: nn.Module) -> list[Tensor]:
    layers = [m for m in model.modules() if isinstance(m, LowRankLinear)]
    return [layer.factors().dense().clone() for layer in layers]
