"""A network that mixes all kinds of low-rank layers, striped images for it, a training loop."""

import torch
from torch import Tensor, nn

from rankwise.nn import LowRankConv2d, LowRankLinear, LowRankModule, TuckerConv2d
from rankwise.numerics.init import variance_preserving
from rankwise.numerics.tucker import variance_preserving_tucker


def mixed(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Matrix kernel, Tucker kernel, linear map and a dense head: images (1, 8, 8) to 3 numbers."""
    torch.manual_seed(seed)
    draw, like = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.float64)
    options = {"gain": 2**0.5, "generator": draw, "like": like}
    return nn.Sequential(
        LowRankConv2d(variance_preserving(6, 9, 4, **options), 3, bias=like.new_zeros(6)),
        nn.ReLU(),
        TuckerConv2d(variance_preserving_tucker(8, 6, (3, 3), (4, 3), **options), stride=2),
        nn.ReLU(),
        nn.Flatten(),
        LowRankLinear(variance_preserving(10, 32, 4, **options)),
        nn.ReLU(),
        nn.Linear(10, 3),
    ).to(dtype)


def stripes(
    count: int, seed: int, size: int = 8, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Waves of three directions with random phase and noise, and which of the three it is."""
    draw = torch.Generator().manual_seed(seed)
    kinds = torch.randint(3, (count,), generator=draw)
    ways = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.7, 0.7]], dtype=dtype)[kinds]
    place = 1.3 * torch.arange(size, dtype=dtype)
    y, x = ways[:, 0, None, None] * place[:, None], ways[:, 1, None, None] * place
    phase = 6.28 * torch.rand(count, 1, 1, generator=draw, dtype=dtype)
    noise = torch.randn(count, size, size, generator=draw, dtype=dtype)
    return (torch.sin(y + x + phase) + 0.5 * noise)[:, None], kinds


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int, size: int = 8
) -> list[float]:
    losses = []
    for i in range(first, last):
        x, kinds = stripes(16, i, size, next(model.parameters()).dtype)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), kinds)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def weights(model: nn.Module) -> list[Tensor]:
    """The weights of all low-rank layers, dense."""
    layers = [m for m in model.modules() if isinstance(m, LowRankModule)]
    return [layer.factors().dense().clone() for layer in layers]
