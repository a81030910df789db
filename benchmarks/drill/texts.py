"""A bit flipped in what a stopped run has written beside its checkpoints."""

import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path

from drill.damage import flip
from drill.faults import Row
from drill.job import finished, forked, go_on
from rankwise.recipes.folder import OPTIONS
from rankwise.recipes.train_options import TrainOptions
from rankwise.report.history import HISTORY, Line, read_history


def flipped_texts(asked: TrainOptions, stop: int, tries: int, draw: random.Random) -> Row:
    """Going on is refused by name; or all that was written can still be read from it."""
    stopped, log = (
        replace(asked, output=asked.output.with_name("stopped")),
        asked.output.with_name("stopped.log"),
    )

    def at_stop(line: Line) -> None:
        if line["step"] == stop:
            signal.raise_signal(signal.SIGINT)

    assert finished(forked(lambda: go_on(stopped, at_stop), log)) == 1
    named = unchanged = 0
    for number in range(tries):
        run = replace(asked, output=asked.output.with_name(f"flipped-{number}"))
        shutil.copytree(stopped.output, run.output)
        file = run.output / draw.choice((OPTIONS, HISTORY))
        whole, said = file.read_bytes(), read_history(run.output / HISTORY)
        file.write_bytes(flip(whole, draw))
        damaged = _contents(run.output)
        status = finished(forked(lambda run=run: go_on(run), log))
        last = log.read_text().rstrip().splitlines()[-1:]
        told = status == 1 and any("ValueError" in line and file.name in line for line in last)
        same = status == 0 and file.name == HISTORY and read_history(file)[:stop] == said
        named += told or same
        unchanged += same or _contents(run.output) == damaged
    return Row("one bit of options or history flipped in a stopped run", tries, named, unchanged)


def _contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}
