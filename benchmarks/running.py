"""Training one contender on one task, with a record of all that is compared later."""

import math
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from methods import Contender, Setting
from torch import Tensor, nn

DIVERGED = 1e4


def rate_at(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then linear decay to zero, as a factor of the peak rate."""
    return min((step + 1) / warmup, (steps - step) / (steps - warmup))


def train(
    setting: Setting,
    model: nn.Module,
    contender: Contender,
    batches: Iterator[Any],
    loss_of: Callable[[Any], Tensor],
    *,
    warmup: int,
    bfloat16: bool,
    validate: Callable[[], float] | None = None,
    every: int = 10,
) -> dict[str, Any]:
    """Take `setting.steps` steps; a run whose loss is not finite any more ends early.

    `validate` is asked before the first step and after every `every` steps: the checkpoints.
    """
    peaks = [[group["lr"] for group in o.param_groups] for o in contender.optimizers]
    losses, seconds, sizes = [], [], [contender.parameters()]
    checkpoints: list[dict[str, float]] = []

    def check(step: int) -> None:
        if validate is not None and (step % every == 0 or step == setting.steps):
            parameters = contender.parameters()
            checkpoints.append({"step": step, "loss": validate(), "parameters": parameters})

    check(0)
    model.train()
    for step in range(setting.steps):
        factor = rate_at(step, setting.steps, warmup)
        for optimizer, rates in zip(contender.optimizers, peaks, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        batch = next(batches)
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = loss_of(batch)
        (loss + contender.penalty()).backward()
        for optimizer in contender.optimizers:
            optimizer.step()
        contender.after_step(step)
        for optimizer in contender.optimizers:
            optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
        sizes.append(contender.parameters())
        check(step + 1)
        if not math.isfinite(losses[-1]) or losses[-1] > DIVERGED:
            break
    return {
        "losses": losses,
        "checkpoints": checkpoints,
        "seconds": seconds,
        "seconds_per_step": statistics.median(seconds),
        "parameters": {
            "start": sizes[0],
            "end": sizes[-1],
            "mean": statistics.fmean(sizes[1:]),
        },
        "ranks": contender.ranks(),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
