"""What an operation in a module takes beside its numbers: Python, dispatch, autograd's graph."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rankwise.cost.trace import trace

WIDTH = 8
PASSES = 20
SWEPT = 2**20
"""Numbers that are written before each pass. In a step an operation finds caches full of what came
before it; calls in a row, as of a loop, are two or three times as fast."""


class _Block(nn.Module):
    """Of each kind of module that a transformer has, one, on next to no numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.bend, self.drop = nn.GELU(), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.drop(self.down(self.bend(self.up(self.norm(x)))))
        return y


def passes_of_calls(device: torch.device, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds of an operation in a forward and in a backward pass, by what `trace` counts."""
    net = _Block().to(device).requires_grad_(False)
    x = torch.ones(1, WIDTH, device=device, requires_grad=True)
    seen = trace(net, lambda: net(x), trains=lambda p: False, layers={})
    swept = torch.zeros(SWEPT, device=device)
    steps = [_pass(net, x, swept, clock) for _ in range(PASSES)]
    forward, backward = (statistics.median(part) for part in zip(*steps, strict=True))
    return forward / len(seen.forward), backward / len(seen.backward)


def _pass(
    net: nn.Module, x: Tensor, swept: Tensor, clock: Callable[[], float]
) -> tuple[float, float]:
    one = torch.ones_like(x)
    swept.add_(1.0)
    begin = clock()
    y = net(x)
    forward = clock() - begin
    swept.add_(1.0)
    begin = clock()
    y.backward(one)
    return forward, clock() - begin


def clock_of(device: torch.device) -> Callable[[], float]:
    """Of a CPU's one thread its own time; else that of the wall, when `device` has finished."""
    if device.type == "cpu":
        return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter

    def clock() -> float:
        torch.accelerator.synchronize(device)
        return time.perf_counter()

    return clock
