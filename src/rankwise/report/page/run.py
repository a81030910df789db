"""What the folder of a run holds, read without the code that made it."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.report.history import HISTORY, Line, read_history
from rankwise.report.recorder import METRICS, RUN

OPTIONS, TABLE = "options.json", "table.md"
TELLING = {"finetune": "head_lr", "compress": "heal_steps", "attack": "attacks", "train": "dense"}
"""An option that only this command has."""
DEPTH = 3
"""Of folders inside, which hold the networks of a run that trains several."""


class Network(NamedTuple):
    """What was recorded of one network."""

    name: str
    """Folder inside the run's; "" for the run itself."""
    lines: list[Line]
    about: dict[str, Any]
    """`run.json`, empty for runs that were recorded before there was one."""


class Run(NamedTuple):
    """A run; what it has not written is empty."""

    folder: Path
    name: str
    options: dict[str, Any]
    metrics: dict[str, Any] | None
    networks: list[Network]
    table: list[list[str]]
    """Header and rows that the command printed."""

    @property
    def command(self) -> str | None:
        """That made it; None for a loop of somebody's own."""
        return next((c for c, option in TELLING.items() if option in self.options), None)

    @property
    def complete(self) -> bool:
        return self.metrics is not None


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Runs with names that differ; ValueError for a folder that is none, or is given twice."""
    places = [folder.resolve() for folder in folders]
    if len(set(places)) < len(places):
        twice = next(f for f, p in zip(folders, places, strict=True) if places.count(p) > 1)
        raise ValueError(f"{twice} is given twice")
    return [_read(f, n) for f, n in zip(folders, _names(places), strict=True)]


def _read(folder: Path, name: str) -> Run:
    files = folder.rglob(HISTORY) if folder.is_dir() else []
    inside = sorted((file.parent.relative_to(folder) for file in files), key=lambda p: p.parts)
    networks = [_network(folder, part) for part in inside if len(part.parts) < DEPTH]
    networks = [network for network in networks if network.lines]
    metrics = _read_json(folder / METRICS)
    if metrics is None and not networks:
        raise ValueError(
            f"{folder} holds no run, neither {HISTORY} nor {METRICS}; "
            f"`rankwise finetune --output {folder}` makes one"
        )
    table = _read_table(folder / TABLE)
    return Run(folder, name, _read_json(folder / OPTIONS) or {}, metrics, networks, table)


def _network(folder: Path, part: Path) -> Network:
    place = folder / part
    name = "" if part == Path() else part.as_posix()
    return Network(name, read_history(place / HISTORY), _read_json(place / RUN) or {})


def _read_json(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged: it holds no object")
    return found


def _read_table(file: Path) -> list[list[str]]:
    """The cells of a table in Markdown, without the line below its header."""
    if not file.exists():
        return []
    lines = [x for x in file.read_text(encoding="utf-8").splitlines() if x.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if not all(set(cell) <= set("-:") and cell for cell in row)]


def _names(places: Sequence[Path]) -> list[str]:
    """The last parts of each path, as few as tell all of them apart."""
    for count in range(1, max(len(p.parts) for p in places) + 1):
        names = ["/".join(p.parts[-count:]) for p in places]
        if len(set(names)) == len(names):
            break
    return [name.replace(os.sep, "/") for name in names]


def number_at(metrics: Mapping[str, Any] | None, *path: str) -> float | None:
    """What is below these keys, if it is there and a number."""
    found: Any = metrics
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, (int, float)) and not isinstance(found, bool) else None
