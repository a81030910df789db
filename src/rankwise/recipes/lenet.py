"""LeNet-5 on MNIST, the smallest experiment of the field: dense, or of low rank in all layers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.nn.conv import LowRankConv2d
from rankwise.nn.factored import Factored
from rankwise.nn.linear import LowRankLinear
from rankwise.numerics.factors import Factors
from rankwise.numerics.init import truncated_svd, variance_preserving
from rankwise.robust.layers import max_pool
from rankwise.robust.walk import LAYERS

SHAPES = ((20, 25), (50, 500), (500, 800), (10, 500))
"""Weights as matrices (out, in): two convolutions of 5 x 5, two linear maps."""
DENSE_WEIGHTS = sum(m * n for m, n in SHAPES)
KERNEL = 5
MAPS = (0, 3, 7, 9)
"""Places of the four in the network."""


class Pool(nn.MaxPool2d):
    """Maximum over 2 x 2, in the memory layout in which that is fast on a CPU."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous(memory_format=torch.channels_last))


LAYERS[Pool] = max_pool


def lenet(maps: Sequence[nn.Module]) -> nn.Sequential:
    """LeNet-5 of 20 and 50 kernels and 500 units (LeCun et al., 1998; the version of Caffe)."""
    first, second, third, last = maps
    # Pooling first: the maximum commutes with the rectifier, which then has a quarter to do.
    return nn.Sequential(
        first, Pool(), nn.ReLU(), second, Pool(), nn.ReLU(), nn.Flatten(), third, nn.ReLU(), last
    )


def dense_lenet(seed: int) -> nn.Sequential:
    """With torch's own start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        convolutions = [nn.Conv2d(1, 20, KERNEL), nn.Conv2d(20, 50, KERNEL)]
        return lenet([*convolutions, nn.Linear(800, 500), nn.Linear(500, 10)])


def low_rank_lenet(ranks: Sequence[int], seed: int) -> nn.Sequential:
    """From scratch, `W` of these four ranks and of a dense start's variance, biases zero."""
    draw, like = torch.Generator().manual_seed(seed), torch.empty(0)
    factors = [
        variance_preserving(m, n, rank, gain=gain, generator=draw, like=like)
        for (m, n), rank, gain in zip(SHAPES, ranks, (2**0.5,) * 3 + (1.0,), strict=True)
    ]
    return factored_lenet(factors, [torch.zeros(m) for m, _ in SHAPES])


def truncated_lenet(dense: nn.Sequential, ranks: Sequence[int]) -> nn.Sequential:
    """Every weight of `dense` cut to its best approximation of that rank."""
    layers: list[Any] = [dense[place] for place in MAPS]
    pairs = zip(layers, ranks, strict=True)
    factors = [truncated_svd(layer.weight.detach().flatten(1), rank) for layer, rank in pairs]
    return factored_lenet(factors, [layer.bias.detach() for layer in layers])


def factored_lenet(factors: Sequence[Factors], biases: Sequence[Tensor]) -> nn.Sequential:
    layers: list[Factored] = []
    for place, f, bias in zip(MAPS, factors, biases, strict=True):
        convolution = place < MAPS[2]
        layers.append(
            LowRankConv2d(f, KERNEL, bias=bias) if convolution else LowRankLinear(f, bias=bias)
        )
    return lenet(layers)


def weights(ranks: Sequence[int]) -> int:
    """Numbers in the weights of a network that runs: two factors a layer, or dense if that is less.

    `min(r (m + n), m n)`, as in the dense network without biases.
    """
    return sum(min(r * (m + n), m * n) for (m, n), r in zip(SHAPES, ranks, strict=True))
