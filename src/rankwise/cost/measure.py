"""Finding out what a machine can do, in a few seconds."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from rankwise.cost.calls import clock_of, passes_of_calls
from rankwise.cost.machine import Machine
from rankwise.cost.rate import Rate

WIDE = 1024
LEAST = (1, 4, 8, 16, 32, 64, 128, 512)
BYTES = (2**14, 2**18, 2**21, 2**23, 2**25, 2**27)
KEPT = 2**26
"""Bytes read and written until memory is free again."""
STACKED = 64
SIZES = (4, 8, 16, 32, 64, 128)
COLUMNS = (2, 8, 16, 32, 64, 128)
TALL = 768
TOGETHER = 4
"""Matrices that are decomposed in one call, as those of layers are."""
NUMBERS = 2**20
PARAMETERS = (2**14, 2**18, 2**20, 2**23)
MANY = 64
SHORTEST = 2e-3
"""Seconds that an action is repeated for at least."""
REPEATS = 3


def measure_machine(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    again: bool = False,
) -> Machine:
    """The speeds of `device` in `dtype`; measured once a process, for each number of threads.

    Linear algebra and AdamW are measured in float32, in which factors are. Each speed is the best
    of a few repeats; on a CPU with one thread its own time counts, without what else runs then.

    Args:
        device: where to measure.
        dtype: type of the products, floating point.
        again: forget what was measured before, as on a machine that others use too.

    Raises:
        ValueError: for a device without memory (meta), or a type that is not floating point.
    """
    device = torch.device(device)
    if device.type == "meta":
        raise ValueError(
            "`device` is meta, which computes nothing. Measure the machine that will train, "
            '`machine=rankwise.cost.measure_machine("cuda")`'
        )
    if not dtype.is_floating_point:
        raise ValueError(f"`dtype` must be floating point, got {dtype}")
    if again:
        _measured.cache_clear()
    return _measured(device, dtype, torch.get_num_threads())


@cache
def _measured(device: torch.device, dtype: torch.dtype, threads: int) -> Machine:
    # A measurement draws numbers; those of the program stay what they were.
    devices = [] if device.type == "cpu" else [device]
    kind = "cuda" if device.type == "cpu" else device.type
    with ExitStack() as stack:
        # Among fake tensors, too, it is the machine that is measured.
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch.random.fork_rng(devices, device_type=kind))
        stack.enter_context(torch.enable_grad())
        return _measure(_Place(device, dtype), _Place(device, torch.float32))


class _Place(NamedTuple):
    device: torch.device
    dtype: torch.dtype

    def ones(self, *shape: int) -> Tensor:
        return torch.ones(*shape, device=self.device, dtype=self.dtype)

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def seconds(self, action: Callable[[], object]) -> float:
        return shortest(action, self.device)


def _measure(place: _Place, factors: _Place) -> Machine:
    rows, columns, inner = zip(*(_products(place, d) for d in LEAST), strict=True)
    drawn = place.ones(NUMBERS)
    numbers, one = place.ones(NUMBERS), place.ones(1).requires_grad_()
    forward, backward = passes_of_calls(place.device, clock_of(place.device))
    tiny = factors.seconds(_adamw(list(factors.ones(MANY)))) / MANY
    return Machine(
        device=str(place.device),
        rows=Rate(LEAST, rows),
        columns=Rate(LEAST, columns),
        inner=Rate(LEAST, inner),
        stacked=Rate(SIZES, tuple(_stack(place, size) for size in SIZES)),
        memory=Rate(BYTES, tuple(size / _sum(place, size) for size in BYTES)),
        transcendental=NUMBERS / place.seconds(lambda: torch.nn.functional.gelu(numbers)),
        random=NUMBERS / place.seconds(lambda: drawn.bernoulli_(0.9)),
        orthogonal=Rate(COLUMNS, tuple(_qr(factors, c) for c in COLUMNS)),
        singular=Rate(COLUMNS, tuple(_svd(factors, c) for c in COLUMNS)),
        adamw=Rate(PARAMETERS, tuple(_stepped(factors, size, tiny) for size in PARAMETERS)),
        call=place.seconds(lambda: one * 2.0),
        forward_call=forward,
        backward_call=backward,
        adamw_call=tiny,
        overlaps=place.device.type != "cpu",
    )


def _products(place: _Place, d: int) -> tuple[float, float, float]:
    """Flops a second with `d` rows, with `d` columns, and with an inner length `d`."""
    x, thin, flat = place.ones(WIDE, WIDE), place.ones(d, WIDE), place.ones(WIDE, d)
    flops = 2.0 * d * WIDE * WIDE
    # A LoRA layer has each of the three once; their speeds differ by a factor of two and more.
    layouts = [lambda: x @ thin.mT, lambda: x.mT @ flat, lambda: x @ flat]
    return (
        flops / place.seconds(lambda: thin @ x),
        3 * flops / sum(map(place.seconds, layouts)),
        flops / place.seconds(lambda: flat @ thin),
    )


def _sum(place: _Place, size: int) -> float:
    """Seconds of one sum of `size` bytes; what it puts out is kept, as activations are."""
    a, count = place.ones(size // (3 * place.dtype.itemsize)), max(1, KEPT // size)
    return place.seconds(lambda: [a + a for _ in range(count)]) / count


def _stack(place: _Place, size: int) -> float:
    a, b = place.ones(STACKED, size, size), place.ones(STACKED, size, size)
    return 2.0 * STACKED * size**3 / place.seconds(lambda: a @ b)


def _qr(place: _Place, columns: int) -> float:
    a = place.draw(TOGETHER, TALL, columns)
    return 2.0 * TOGETHER * TALL * columns**2 / place.seconds(lambda: torch.linalg.qr(a))


def _svd(place: _Place, size: int) -> float:
    a = place.draw(TOGETHER, size, size)
    return 20.0 * TOGETHER * size**3 / place.seconds(lambda: torch.linalg.svd(a))


def _stepped(place: _Place, size: int, call: float) -> float:
    return size / max(place.seconds(_adamw([place.ones(size)])) - call, 1e-9)


def _adamw(tensors: list[Tensor]) -> Callable[[], object]:
    parameters = [t.detach().clone().requires_grad_() for t in tensors]
    for p in parameters:
        p.grad = torch.ones_like(p)
    return torch.optim.AdamW(parameters).step


def shortest(action: Callable[[], object], device: torch.device) -> float:
    """Seconds of one `action`: the least mean over calls in a row."""
    clock = clock_of(device)

    def seconds(count: int) -> float:
        start = clock()
        for _ in range(count):
            action()
        return clock() - start

    seconds(1)
    count = 1
    while (took := seconds(count)) < SHORTEST:
        count = max(2 * count, int(count * SHORTEST / max(took, 1e-7)))
    return min(took, *(seconds(count) for _ in range(REPEATS - 1))) / count
