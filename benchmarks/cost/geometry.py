"""What the optimizer does beyond a stock AdamW step: one square layer, over its size and its rank.

Exponents are slopes of least squares in logarithms; `of the last` those of the largest three, where
the calls themselves matter least.
"""

import statistics
from dataclasses import dataclass
from typing import Any

import torch
from alternating import rounds_of
from torch import nn

import rankwise as rw
from cost.clock import now
from cost.steps import StockAdamW
from cost.summaries import exponent

TOKENS = 64
PERIOD = 10
"""Steps that are added up, since a layer's bases need not move in each."""
LAST = 3
Row = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """Sizes at one rank, and ranks at one size."""

    sizes: tuple[int, ...]
    at_rank: int
    ranks: tuple[int, ...]
    at_size: int


FULL = Sweep((384, 768, 1536, 2048, 3072, 4096), 16, (4, 8, 16, 32, 64), 768)
QUICK = Sweep((384, 768, 1536), 16, (8, 16, 32), 768)


class Layer:
    """One adapted layer that is trained on the same inputs for ever."""

    def __init__(self, n: int, rank: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self._model = nn.Sequential(nn.Linear(n, n))
        rw.adapt_(self._model, rank=rank)
        self._model.to(device)
        self._optimizer = rw.Optimizer(self._model)
        self._x, self._dy = torch.randn(2, TOKENS, n).to(device)
        self._stock = StockAdamW({"0": (n, n)}, device)
        self._rank, self._device = rank, device

    def seconds_beyond(self) -> float:
        """Of `PERIOD` steps, a step: ours minus stock, each after a backward pass."""
        beyond = 0.0
        for _ in range(PERIOD):
            self._model(self._x).backward(self._dy)
            start = now(self._device)
            self._optimizer.step()
            self._optimizer.zero_grad()
            beyond += now(self._device) - start - self._stock.seconds({"0": self._rank})
        return beyond / PERIOD


def measure(sweep: Sweep, seconds: float, device: torch.device) -> Row:
    """Seconds by size and by rank, and the exponents; about `seconds` go into each layer."""
    pairs = [(n, sweep.at_rank) for n in sweep.sizes] + [(sweep.at_size, r) for r in sweep.ranks]
    beyond = {pair: _of_layer(*pair, seconds, device) for pair in dict.fromkeys(pairs)}
    by_size = {n: beyond[n, sweep.at_rank] for n in sweep.sizes}
    by_rank = {r: beyond[sweep.at_size, r] for r in sweep.ranks}
    return {
        "at rank": sweep.at_rank,
        "at size": sweep.at_size,
        "by size": by_size,
        "by rank": by_rank,
        "exponents": {"size": exponents(by_size), "rank": exponents(by_rank)},
    }


def _of_layer(n: int, rank: int, seconds: float, device: torch.device) -> float:
    layer = Layer(n, rank, device)
    found: list[float] = []
    rounds_of({"step": lambda: found.append(layer.seconds_beyond())}, seconds=seconds)
    return statistics.median(found)


def exponents(seconds: dict[int, float]) -> dict[str, float | None]:
    """None where AdamW takes longer than all of ours, so that there is no logarithm."""
    if min(seconds.values()) <= 0:
        return {"of all": None, "of the last": None}
    sizes, values = list(seconds), list(seconds.values())
    return {
        "of all": exponent(sizes, values),
        "of the last": exponent(sizes[-LAST:], values[-LAST:]),
    }
