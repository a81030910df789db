"""A small network trained for ever: ranks grow and are cut all the time, its task never rests.

A kernel in Tucker form, a weight that is low rank as a whole and an adapter beside a frozen one
take part, and layers that train densely; a guard keeps copies to go back to. A step is two
micro-batches of rows drawn for it alone, labelled by a linear map that turns once in `TURN` steps;
one label in ten is drawn by lot.
"""

import gc
import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import rankwise as rw
from rankwise.recipes.memory import adapter_bytes
from rankwise.report.machine import memory_in_use

CHANNELS, SIDE = 8, 4
INPUTS = CHANNELS * SIDE**2
CLASSES = 10
BATCH = 8
MICRO_BATCHES = 2
TURN = 5000
WRONG = 0.1


@dataclass(frozen=True)
class Course:
    """What is run: how long, in which type, and when it is looked at and taken up anew."""

    steps: int
    seed: int = 0
    dtype: torch.dtype = torch.float32
    """Of factors and state. Float32 works under bfloat16 autocast, float64 without."""
    every: int = 100
    restart: int = 1000


def network(seed: int, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(seed)
    stem = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.GELU(), nn.Flatten())
    trunk = nn.Sequential(nn.Linear(INPUTS, 48), nn.LayerNorm(48), nn.GELU())
    tail = nn.Sequential(nn.Linear(48, 48), nn.GELU(), nn.Linear(48, CLASSES))
    rw.factorize_(stem, rank=4, convolution=rw.nn.TuckerConv2d)
    rw.factorize_(trunk, rank=4, select="0")
    rw.adapt_(tail, rank=4, select="0", train="2")
    image = nn.Unflatten(1, (CHANNELS, SIDE, SIDE))
    return nn.Sequential(image, stem, trunk, tail).to(dtype)


def optimizer_of(model: nn.Module) -> rw.Optimizer:
    """With `rest=0` ranks go on growing and being cut, however far the run is."""
    guard = rw.check.Guard(rewinds=3)
    return rw.Optimizer(model, rank_rule=rw.Tolerance(rtol=0.2, rest=0.0), guard=guard)


def batch(seed: int, step: int, part: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows and labels; of either type the same."""
    teachers = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, INPUTS, CLASSES, generator=teachers)
    own = torch.Generator().manual_seed((seed * 10**6 + step) * MICRO_BATCHES + part)
    rows = torch.randn(BATCH, INPUTS, generator=own)
    angle = 2 * math.pi * step / TURN
    labels = (rows @ (math.cos(angle) * a + math.sin(angle) * b)).argmax(1)
    wrong = torch.rand(BATCH, generator=own) < WRONG
    drawn = torch.randint(CLASSES, (BATCH,), generator=own)
    return rows.to(dtype), torch.where(wrong, drawn, labels)


def train_step(model: nn.Module, optimizer: rw.Optimizer, course: Course, step: int) -> float:
    """The mean loss of the micro-batches."""
    total = 0.0
    for part in range(MICRO_BATCHES):
        rows, labels = batch(course.seed, step, part, course.dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=course.dtype == torch.float32):
            loss = cross_entropy(model(rows), labels) / MICRO_BATCHES
        loss.backward()
        total += loss.item()
    optimizer.step()
    optimizer.zero_grad()
    return total


def taken_up(
    model: nn.Module, optimizer: rw.Optimizer, course: Course, step: int, folder: Path
) -> tuple[nn.Module, rw.Optimizer, float]:
    """The run as another process would go on with it, and the change of its outputs."""
    file = folder / "run.safetensors"
    rw.save_training(file, model=model, optimizer=optimizer, progress={"step": step})
    again = network(course.seed, course.dtype)
    optimizer_again = optimizer_of(again)
    rw.load_training(file, model=again, optimizer=optimizer_again)
    rows, _ = batch(course.seed, step, 0, course.dtype)
    with torch.no_grad():
        gap = (again(rows) - model(rows)).abs().max().item()
    return again, optimizer_again, gap


def run(course: Course) -> dict[str, Any]:
    """The samples of all steps that are multiples of `course.every`, and what must be zero."""
    model = network(course.seed, course.dtype)
    optimizer = optimizer_of(model)
    samples: list[dict[str, float]] = []
    losses: list[float] = []
    ranks: list[list[int]] = []
    changes, gaps = 0, []
    with TemporaryDirectory() as folder:
        for step in range(1, course.steps + 1):
            losses.append(train_step(model, optimizer, course, step))
            ranks.append([rank for _, layer in optimizer.layers for rank in layer.ranks])
            changes += len(ranks) > 1 and ranks[-1] != ranks[-2]
            if step % course.every == 0:
                samples.append(sample(model, optimizer, step, losses, ranks))
                losses, ranks = [], ranks[-1:]
            if step % course.restart == 0:
                model, optimizer, gap = taken_up(model, optimizer, course, step, Path(folder))
                gaps.append(gap)
    return {
        "samples": samples,
        "rank_changes": changes,
        "skipped": optimizer.skipped,
        "incidents": optimizer.incidents._asdict(),
        "restarts": len(gaps),
        "restart_gap": max(gaps, default=0.0),
    }


def sample(
    model: nn.Module,
    optimizer: rw.Optimizer,
    step: int,
    losses: list[float],
    ranks: list[list[int]],
) -> dict[str, float]:
    """The state after a step; losses and ranks are those of the steps since the last sample."""
    sums = list(map(sum, ranks))
    return {
        "step": step,
        "loss": sum(losses) / len(losses),
        "least_rank": min(sums),
        "largest_rank": max(sums),
        "factor_bytes": adapter_bytes(optimizer.layers),
        "resident_bytes": memory_in_use(),
        "live_tensors": live_tensors(),
        "defect": max(rw.check.orthonormality(model).values()),
    }


def live_tensors() -> int:
    """Those that Python holds."""
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
