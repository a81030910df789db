"""The level of layers: forward and backward of one linear map, the frozen base and `dx` included.

A new contender is one more entry of `CONTENDERS`.
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from alternating import rounds_of
from torch import Tensor, nn

import rankwise as rw
from cost.clock import now
from cost.memory import saved_bytes
from cost.summaries import quartiles, ratios

REFERENCE = "LoRA"
Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A linear map of `n` inputs to `m` outputs, a rank, and how many tokens pass at once."""

    m: int
    n: int
    rank: int
    tokens: int

    @property
    def label(self) -> str:
        return f"{self.n} to {self.m}, r = {self.rank}, {self.tokens} tokens"


MAPS = ((384, 384), (1536, 384), (384, 1536), (768, 768), (4096, 4096))
RANKS = (8, 16, 64)
TOKENS = (2048, 222)
SHAPES = tuple(Shape(*map_, r, tokens) for tokens in TOKENS for map_ in MAPS for r in RANKS)
QUICK = tuple(Shape(*map_, 8, tokens) for tokens in TOKENS for map_ in MAPS[:2])


def frozen(shape: Shape) -> nn.Module:
    return nn.Linear(shape.n, shape.m).requires_grad_(False)


def lora(shape: Shape) -> nn.Module:
    """PEFT's own layer."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=shape.rank, lora_alpha=2 * shape.rank, target_modules=["0"])
    layer = inject_adapter_in_model(config, nn.Sequential(frozen(shape)))[0]
    # At zero, as it starts, the product would be as long; but its gradient would not be all there.
    nn.init.normal_(layer.lora_B["default"].weight)
    return layer


def rankwise(shape: Shape) -> nn.Module:
    """With the gradients of all three factors."""
    model = nn.Sequential(frozen(shape))
    rw.adapt_(model, rank=shape.rank)
    return model[0]


CONTENDERS: dict[str, Callable[[Shape], nn.Module]] = {
    REFERENCE: lora,
    "frozen": frozen,
    "rankwise": rankwise,
}


def passes(layer: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], None]:
    """Forward and backward, gradients cleared."""
    trained = [x, *(p for p in layer.parameters() if p.requires_grad)]

    def both() -> None:
        layer(x).backward(dy)
        for tensor in trained:
            tensor.grad = None

    return both


def measure(shape: Shape, seconds: float, device: torch.device) -> list[Row]:
    """One row a contender; about `seconds` go into all."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(shape.tokens, shape.n, generator=draw).to(device).requires_grad_()
    dy = torch.randn(shape.tokens, shape.m, generator=draw).to(device)
    layers = {name: build(shape).to(device) for name, build in CONTENDERS.items()}
    actions = {name: passes(layer, x, dy) for name, layer in layers.items()}
    taken = rounds_of(actions, seconds=seconds, clock=lambda: now(device))
    times = {name: dict(enumerate(own)) for name, own in taken.items()}
    return [
        {
            "case": shape.label,
            **asdict(shape),
            "contender": name,
            "seconds": statistics.median(own.values()),
            "to LoRA": quartiles(ratios(own, times[REFERENCE])),
            "saved bytes": _saved(layers[name], x),
        }
        for name, own in times.items()
    ]


def _saved(layer: nn.Module, x: Tensor) -> int:
    """The input included, which the layer before has made."""
    with saved_bytes(layer.parameters()) as saved:
        y = layer(x)
        count = saved()
    del y
    return count
