"""The job of the drill: `rankwise train` on small squares, with ranks that fall, and its twin."""

import json
import math
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from rankwise.io.tensor_file import read_tensors
from rankwise.recipes.folder import METRICS
from rankwise.recipes.history import Watcher
from rankwise.recipes.train import train_classifier
from rankwise.recipes.train_options import TrainOptions
from rankwise.recipes.training import checkpoint_in, checkpoints_in
from rankwise.report.history import HISTORY, Line, read_history

ROWS, SIZE, CLASSES = 60, 12, 3
MEASURED = ("seconds", "memory", "peak_memory")
"""Of a line: what no two runs have in common."""


def network(classes: int, channels: int, size: int) -> nn.Sequential:
    """With all that a state has to hold: dropout draws, the norm remembers."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * size * size, 48),
        nn.BatchNorm1d(48),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(48, 48),
        nn.ReLU(),
        nn.Linear(48, classes),
    )


def write_squares(folder: Path) -> Path:
    """Noisy images whose bright corner tells the class, as the four files of idx."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, seed in (("train", 0), ("t10k", 1)):
        draw = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 60, (ROWS, SIZE, SIZE), generator=draw, dtype=torch.uint8)
        labels = (torch.arange(ROWS) % CLASSES).to(torch.uint8)
        for image, label in zip(images, labels.tolist(), strict=True):
            image[:, 4 * label : 4 * label + 4] += 150
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            axes = b"".join(size.to_bytes(4, "big") for size in values.shape)
            header = bytes([0, 0, 8, values.ndim]) + axes
            content = header + bytes(values.flatten().tolist())
            (folder / f"{part}-{name}-ubyte").write_bytes(content)
    return folder


def options(data: Path, output: Path, *, steps: int, save_every: int, seed: int) -> TrainOptions:
    return TrainOptions(
        data=str(data), model="drill.job:network", keep=0.3, steps=steps, batch_size=16,
        dense=False, seed=seed, output=output, save_every=save_every,
    )  # fmt: skip


def go_on(asked: TrainOptions, step: Callable[[Line], object] = lambda line: None) -> None:
    """What a user types after a crash: `--resume` where there is a checkpoint, else anew."""
    begun = checkpoint_in(asked.output) is not None and not is_complete(asked.output)
    train_classifier(replace(asked, resume=begun, overwrite=not begun), Watcher(_unheard, step))


def _unheard(message: str) -> None:
    return None


def is_complete(folder: Path) -> bool:
    return (folder / METRICS).exists()


def forked(work: Callable[[], object], log: Path) -> int:
    """The process in which `work` runs; status 0 if it returns, else 1 and a traceback in `log`."""
    process = os.fork()
    if process:
        return process
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        work()
        os._exit(0)
    except BaseException:
        log.write_text(traceback.format_exc())
        os._exit(1)


def finished(process: int) -> int:
    """Its exit status, once it has ended by itself."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def ends_within(process: int, seconds: float) -> int | None:
    """Its exit status; None if it still runs."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        left = end - time.monotonic()
        if left <= 0:
            return None
        time.sleep(min(left, 0.001))


class Difference(NamedTuple):
    """Between two runs, the largest of each kind; infinite where something is there in one only."""

    weights: float
    """Of the saved network and of everything in the last checkpoint."""
    history: float
    results: float

    @property
    def worst(self) -> float:
        return max(self)


def difference(one: Path, other: Path) -> Difference:
    files = ["model.safetensors", *(str(p.relative_to(one)) for p in checkpoints_in(one)[:1])]
    weights = max(_apart(_numbers(one / name), _numbers(other / name)) for name in files)
    histories = [
        [{k: v for k, v in line.items() if k not in MEASURED} for line in read_history(p / HISTORY)]
        for p in (one, other)
    ]
    results = [_results(json.loads((p / METRICS).read_text())) for p in (one, other)]
    return Difference(weights, _apart(*histories), _apart(*results))


def _numbers(file: Path) -> dict[str, Any]:
    """Names and values; inf for a file that is not there."""
    if not file.is_file():
        return {}
    return {name: t.tolist() for name, t in read_tensors(file).tensors.items()}


def _results(metrics: dict[str, Any]) -> dict[str, Any]:
    own = {k: metrics[k] for k in ("ranks", "condition", "skipped_steps", "removed", "steps")}
    scores = ("accuracy", "loss", "train_loss", "parameters")
    return own | {k: metrics["low_rank"][k] for k in scores}


def _apart(one: Any, other: Any) -> float:
    """The largest difference of two numbers at the same place."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return math.inf
        return max((_apart(one[k], other[k]) for k in one), default=0.0)
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            return math.inf
        return max((_apart(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    if one == other or (one != one and other != other):
        return 0.0
    numbers = isinstance(one, (int, float)) and isinstance(other, (int, float))
    return abs(one - other) if numbers else math.inf
