"""Two networks side by side: what they know, how large they are, how fast."""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rankwise.nn.low_rank import low_rank_layers
from rankwise.recipes.classifier import Score
from rankwise.recipes.images import Images
from rankwise.robust.evaluate import moved
from rankwise.surgery.places import call
from rankwise.surgery.shrink import shrink

BATCHES = (1, 32)
ROUNDS = 30
TEST_BATCH = 1000


@torch.no_grad()
def score(model: nn.Module, data: Images) -> Score:
    """On the test images, as in use."""
    training = model.training
    model.eval()
    parts = data.test.split(TEST_BATCH)
    logits = torch.cat([model(moved(model, part)).float().cpu() for part in parts])
    model.train(training)
    right = (logits.argmax(1) == data.test_labels).float().mean()
    loss = nn.functional.cross_entropy(logits, data.test_labels)
    return Score(float(loss), float(right))


@torch.no_grad()
def flops(model: nn.Module, example: Any) -> int:
    """Floating-point operations of all maps, two for a product and a sum."""
    with FlopCounterMode(display=False) as counter:
        call(model, example)
    return counter.get_total_flops()


@torch.inference_mode()
def latencies(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Median seconds of each call, all in turn, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds: list[list[float]] = [[] for _ in calls]
    try:
        for _ in range(ROUNDS):
            for run, own in zip(calls, seconds, strict=True):
                start = time.perf_counter()
                run()
                own.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return [statistics.median(own) for own in seconds]


def in_use(model: nn.Module) -> nn.Module:
    """A copy on the CPU in the form that runs, for evaluation."""
    small = shrink(model) if low_rank_layers(model) else copy.deepcopy(model)
    return small.cpu().eval()


def measured(models: dict[str, nn.Module], data: Images, files: dict[str, Path]) -> dict[str, Any]:
    """FLOPs and latency of each model in the form that runs, and the bytes of its file."""
    copies = [in_use(model) for model in models.values()]
    times = {
        rows: latencies([partial(model, data.test[:rows]) for model in copies]) for rows in BATCHES
    }
    return {
        name: {
            "flops_per_image": flops(model, data.test[:1]),
            "bytes": files[name].stat().st_size,
            "latency": {str(rows): times[rows][i] for rows in BATCHES},
        }
        for i, (name, model) in enumerate(zip(models, copies, strict=True))
    }


class Quantity(NamedTuple):
    """A line of the table."""

    name: str
    path: tuple[str, ...]
    """Where it is in the measures of a network."""
    form: str
    factor: float = 1.0
    as_ratio: bool = True
    """Whether two networks are compared by a ratio, not by a difference."""


QUANTITIES = (
    Quantity("test accuracy, %", ("accuracy",), ".2f", 100.0, as_ratio=False),
    Quantity("test loss", ("loss",), ".4f", as_ratio=False),
    Quantity("parameters", ("parameters",), ",.0f"),
    Quantity("of the factorised layers", ("factorised",), ",.0f"),
    Quantity("FLOPs per image", ("flops_per_image",), ",.0f"),
    Quantity("file, bytes", ("bytes",), ",.0f"),
    *(
        Quantity(f"latency at batch {rows}, ms", ("latency", str(rows)), ".3f", 1e3)
        for rows in BATCHES
    ),
    Quantity("training, ms per step", ("seconds_per_step",), ".2f", 1e3),
)


def table_of(metrics: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: of each quantity the dense network's, the other's, and the change."""
    return ["", "dense", "low rank", "change"], [_row(q, metrics) for q in QUANTITIES]


def _row(q: Quantity, metrics: dict[str, Any]) -> list[str]:
    values = [_value(q, metrics[name]) for name in ("dense", "low_rank")]
    cells = ["-" if v is None else format(v, q.form) for v in values]
    before, after = values
    if before is None or after is None:
        change = ""
    elif q.as_ratio:
        change = f"x {after / before:.3f}"
    else:
        change = format(after - before, f"+{q.form}")
    return [q.name, *cells, change]


def _value(q: Quantity, measures: Any) -> float | None:
    for key in q.path:
        measures = measures.get(key)
    return None if measures is None else q.factor * measures
