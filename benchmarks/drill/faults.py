"""Faults made on purpose: each has to be found, to name the file, and to change nothing."""

import json
import random
import resource
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from drill.damage import Damage, cut, flip, zero
from drill.job import difference, finished, forked, go_on, network
from rankwise.io.training import load_training, save_training
from rankwise.optim.budget import Budget
from rankwise.optim.optimizer import Optimizer
from rankwise.recipes.train_options import TrainOptions
from rankwise.report.history import HISTORY
from rankwise.surgery.factorize import factorize_
from rankwise.surgery.init import Random


class Row(NamedTuple):
    """One kind of fault."""

    fault: str
    tried: int
    named: int
    """Refused, or warned of, by an error that names the file."""
    unchanged: int
    """Model, optimizer and the files beside were as before."""

    @property
    def passed(self) -> bool:
        return self.tried == self.named == self.unchanged


class Trained(NamedTuple):
    model: nn.Module
    optimizer: Optimizer

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer}

    def numbers(self) -> list[Any]:
        state = self.optimizer.state_dict()["state"]
        tensors = list(self.model.state_dict().values())
        tensors += [t for e in state.values() for t in e.values() if isinstance(t, torch.Tensor)]
        return [t.detach().tolist() for t in tensors]


def trained(steps: int) -> Trained:
    torch.manual_seed(0)
    model = network(3, 1, 12)
    factorize_(model, rank=12, init=Random(seed=0))
    optimizer = Optimizer(model, rank_rule=Budget(parameters=2000, every=2))
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 1, 12, 12)).square().mean().backward()
        optimizer.step()
    return Trained(model, optimizer)


def refused(name: str, kind: Damage, tries: int, folder: Path, draw: random.Random) -> Row:
    """`load_training` of a damaged file."""
    file, saved, other = folder / "run.safetensors", trained(4), trained(1)
    save_training(file, **saved.parts(), progress={"step": 4})
    whole, before = file.read_bytes(), other.numbers()
    named = unchanged = 0
    for _ in range(tries):
        file.write_bytes(kind(whole, draw) or b"")
        try:
            load_training(file, **other.parts())
        except ValueError as error:
            named += str(file) in str(error)
        unchanged += other.numbers() == before
    return Row(name, tries, named, unchanged)


def vanished(tries: int, folder: Path) -> Row:
    file, other = folder / "gone.safetensors", trained(1)
    before, named, unchanged = other.numbers(), 0, 0
    for _ in range(tries):
        try:
            load_training(file, **other.parts())
        except FileNotFoundError as error:
            named += str(file) in str(error)
        unchanged += other.numbers() == before
    return Row("file gone", tries, named, unchanged)


def older_taken(tries: int, folder: Path, draw: random.Random) -> Row:
    """`load_training` of a folder whose newest file is damaged: the one before, to the last bit."""
    place, saved, other = folder / "checkpoints", trained(3), trained(1)
    save_training(place, **saved.parts(), progress={"step": 3})
    expected = saved.numbers()
    newest = trained(4)
    save_training(place, **newest.parts(), progress={"step": 4})
    file = place / "step-000004.safetensors"
    whole, named, unchanged = file.read_bytes(), 0, 0
    for _ in range(tries):
        file.write_bytes(draw.choice((flip, cut, zero))(whole, draw))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            progress = load_training(place, **other.parts())
        named += len(told) == 1 and str(file) in str(told[0].message)
        unchanged += progress == {"step": 3} and other.numbers() == expected
    return Row("newest of a folder damaged: the one before taken", tries, named, unchanged)


def full_disk(tries: int, folder: Path, draw: random.Random) -> Row:
    """`save_training` where the system refuses to write beyond some length of a file."""
    file, saved = folder / "run.safetensors", trained(4)
    save_training(file, **saved.parts(), progress={"step": 4})
    whole, named, unchanged = file.read_bytes(), 0, 0
    changed = trained(6)
    for _ in range(tries):
        with _limited(draw.randrange(len(whole) // 2)):
            try:
                save_training(file, **changed.parts(), progress={"step": 6})
            except OSError as error:
                named += error.filename == str(file)
        unchanged += file.read_bytes() == whole and len(list(folder.glob(".*.tmp"))) == 0
    return Row("disk full while saving", tries, named, unchanged)


class _limited:
    """Files end at so many bytes: what a full disk does, without one."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.length, self.before[1]))

    def __exit__(self, *raised: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def full_disk_in_a_run(
    asked: TrainOptions, untouched: Path, tries: int, draw: random.Random
) -> Row:
    """A run that meets a full disk, and goes on once there is room: the same to the last bit."""
    size = (untouched / HISTORY).stat().st_size
    named = unchanged = 0
    for number in range(tries):
        run = replace(asked, output=asked.output.with_name(f"full-{number}"))
        log = run.output.with_suffix(".log")
        # Of some the first checkpoint has no room, of others a later line of the history.
        limit = draw.randrange(2_000, size)

        def limited(run: TrainOptions = run, limit: int = limit) -> None:
            with _limited(limit):
                go_on(run)

        status = finished(forked(limited, log))
        text = log.read_text()
        named += status == 1 and "could not be written (File too large)" in text
        named_file = str(run.output) in text.rstrip().splitlines()[-1]
        rest = finished(forked(lambda run=run: go_on(run), log))
        same = rest == 0 and difference(untouched, run.output).worst == 0.0
        unchanged += named_file and same
    return Row("disk full in a run, which goes on later", tries, named, unchanged)


def injected(folder: Path, draw: random.Random, scale: float) -> list[Row]:
    """All that need no run; `scale` of the usual number of tries."""

    def times(tries: int) -> int:
        return max(1, round(scale * tries))

    folder.mkdir(parents=True, exist_ok=True)
    makers: list[Callable[[], Row]] = [
        lambda: refused("one bit flipped", flip, times(1000), folder, draw),
        lambda: refused("file cut off", cut, times(200), folder, draw),
        lambda: refused("file empty", lambda data, draw: b"", times(1), folder, draw),
        lambda: refused("a page of zeros", zero, times(100), folder, draw),
        lambda: vanished(times(1), folder),
        lambda: older_taken(times(100), folder, draw),
        lambda: full_disk(times(50), folder, draw),
    ]
    return [make() for make in makers]


def in_a_process(folder: Path, seed: int, scale: float) -> list[Row]:
    """`injected` in a process of its own: the one that forks takes no training step itself."""
    result, log = folder / "rows.json", folder / "faults.log"
    folder.mkdir(parents=True, exist_ok=True)

    def work() -> None:
        result.write_text(json.dumps(injected(folder, random.Random(seed), scale)))

    if finished(forked(work, log)):
        raise RuntimeError(f"the injected faults have failed: {log.read_text()}")
    return [Row(*row) for row in json.loads(result.read_text())]
