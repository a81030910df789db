"""SIGKILL at random moments, until a run has come to its end all the same."""

import importlib
import json
import os
import random
import signal
import sys
import time
import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from drill.damage import damage
from drill.job import (
    Difference,
    difference,
    ends_within,
    finished,
    forked,
    go_on,
    is_complete,
)
from rankwise.check.finding import Verdict
from rankwise.io.atomic import TEMPORARY
from rankwise.io.tensor_file import read_tensors
from rankwise.recipes.folder import OPTIONS
from rankwise.recipes.run_findings import read_lines
from rankwise.recipes.sums import sums_findings
from rankwise.recipes.train_options import TrainOptions
from rankwise.recipes.training import CHECKPOINTS, checkpoints_in
from rankwise.report.history import HISTORY
from rankwise.report.recorder import RUN

KEPT = 2
"""Checkpoints that stay."""
STRIDE = 8
"""Further checkpoints within which a process is killed."""
AIMED = 0.8
"""Of the kills after further checkpoints, those once the next one is begun."""
POLL, SAVING = 0.001, 0.01
"""Seconds between two looks; and within which an aimed kill comes."""
DAMAGED = 0.2
"""Of the kills, those after which the newest checkpoint is damaged too."""


@dataclass
class Tally:
    """What happened to all runs together."""

    kills: int = 0
    saving: Counter[str] = field(default_factory=Counter)
    """Kills within the writing of a file, by its kind."""
    steps: list[int] = field(default_factory=list)
    """Of the newest checkpoint at each kill; 0 before the first."""
    damaged: int = 0
    """Checkpoints that were damaged beside."""
    unreadable: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """Tracebacks of runs that did not go on."""
    differences: list[Difference] = field(default_factory=list)
    runs: int = 0
    seconds: float = 0.0


class Pace(NamedTuple):
    """Seconds of the uninterrupted run."""

    start: float
    """Before its first step."""
    step: float
    end: float
    """After its last step: measuring, drawing, sums."""


def reference(asked: TrainOptions, folder: Path) -> Pace:
    """The uninterrupted run, in a process of its own.

    What it imports late is imported here, so that later processes have it from their start.
    """
    log, modules, times = (folder / name for name in ("log", "modules", "times"))

    def work() -> None:
        moments = [time.monotonic()]
        go_on(asked, lambda line: moments.append(time.monotonic()))
        modules.write_text("\n".join(sys.modules))
        times.write_text(json.dumps([*moments, time.monotonic()]))

    for _ in range(2):
        if finished(forked(work, log)):
            raise RuntimeError(f"the uninterrupted run has failed: {log.read_text()}")
        for name in modules.read_text().split():
            with suppress(ImportError):
                importlib.import_module(name)
    begin, first, *_, last, end = json.loads(times.read_text())
    return Pace(first - begin, (last - first) / (asked.steps - 1), end - last)


def killed_run(
    asked: TrainOptions,
    untouched: Path,
    tally: Tally,
    *,
    most: int,
    pace: Pace,
    draw: random.Random,
) -> None:
    """One run to its end, killed at random moments; `most` kills in all.

    Then it is compared with that in `untouched`.
    """
    log = asked.output.with_suffix(".log")
    harmed: dict[Path, bytes] = {}
    while not is_complete(asked.output):
        process = forked(lambda: _quietly(asked), log)
        if tally.kills < most:
            status = _run_on(process, asked, pace, draw)
        else:
            status = finished(process)
        if status is None:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            harmed = {p: b for p, b in harmed.items() if p.exists() and p.read_bytes() == b}
            _count(asked.output, tally, set(harmed))
            whole = [p for p in checkpoints_in(asked.output) if p not in harmed]
            goes_on = not is_complete(asked.output) and len(whole) > 1
            if draw.random() < DAMAGED and goes_on:
                harmed |= damage(whole[0], draw)
                tally.damaged += 1
        elif status:
            tally.failed.append(log.read_text())
            return
    tally.runs += 1
    tally.differences.append(difference(untouched, asked.output))
    sums = sums_findings(asked.output)
    tally.unreadable += [f.seen for f in sums if f.verdict is not Verdict.OK]


def _run_on(process: int, asked: TrainOptions, pace: Pace, draw: random.Random) -> int | None:
    """Up to a random moment: in its start, some checkpoints later, or in what comes after all.

    Its exit status if it has ended before, else None.
    """
    begun = _newest(asked.output)
    if begun == asked.steps:
        return ends_within(process, draw.uniform(0.0, pace.start + 2 * pace.end))
    further = draw.randrange(STRIDE)
    if further == 0:
        return ends_within(process, draw.uniform(0.0, pace.start))
    while _newest(asked.output) < min(begun + further, asked.steps):
        status = ends_within(process, POLL)
        if status is not None:
            return status
    if draw.random() > AIMED:
        return ends_within(process, draw.uniform(0.0, pace.step))
    while not any((asked.output / CHECKPOINTS).glob(".*.tmp")):
        status = ends_within(process, POLL)
        if status is not None:
            return status
    return ends_within(process, draw.uniform(0.0, SAVING))


def _newest(folder: Path) -> int:
    """Steps that the newest checkpoint has; 0 before the first."""
    steps = [int(p.stem.removeprefix("step-")) for p in checkpoints_in(folder)]
    return max(steps, default=0)


def _quietly(asked: TrainOptions) -> None:
    """Of damaged checkpoints it warns, as it is to."""
    warnings.simplefilter("ignore", RuntimeWarning)
    go_on(asked)


def _count(folder: Path, tally: Tally, harmed: set[Path]) -> None:
    tally.kills += 1
    tally.steps.append(_newest(folder))
    left = [p for p in folder.rglob(".*.tmp") if TEMPORARY.fullmatch(p.name)]
    for path in left:
        name = path.name[1:].rsplit(".", 2)[0]
        tally.saving["a checkpoint" if name.startswith("step-") else name] += 1
    if not left and len(checkpoints_in(folder)) > KEPT:
        tally.saving["a checkpoint is there, an older one not yet gone"] += 1
    tally.unreadable += unreadable(folder, harmed)


def unreadable(folder: Path, harmed: set[Path]) -> list[str]:
    """What is wrong with files in their places, beside those that were `harmed` on purpose."""
    found: list[str] = []
    for name in (OPTIONS, RUN, "metrics.json", "labels.json"):
        if (folder / name).exists():
            try:
                json.loads((folder / name).read_text())
            except ValueError as error:
                found.append(f"{folder / name}: {error}")
    for file in set(folder.rglob("*.safetensors")) - harmed:
        try:
            read_tensors(file)
        except ValueError as error:
            found.append(str(error))
    if (folder / HISTORY).exists():
        found += [flaw for flaw in [read_lines(folder / HISTORY)[1]] if flaw]
    return found
