"""What the folder of a run holds, read without the code that made it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.io.json_object import read_object
from rankwise.io.ordinary import ordinary
from rankwise.report.fields import (
    ABOUT,
    ATTACK,
    ATTACK_OPTIONS,
    LINE,
    MOST,
    check_fields,
)
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
    table, options = _read_table(folder / TABLE), _read_json(folder / OPTIONS) or {}
    run = Run(folder, name, options, metrics, networks, table)
    if run.command == "attack":
        check_fields(str(folder / OPTIONS), options, ATTACK_OPTIONS)
        check_fields(str(folder / METRICS), metrics or {}, ATTACK)
    return run


def _network(folder: Path, part: Path) -> Network:
    place = folder / part
    name = "" if part == Path() else part.as_posix()
    lines, about = read_history(place / HISTORY), _read_json(place / RUN) or {}
    check_fields(str(place / RUN), about, ABOUT)
    for number, line in enumerate(lines, 1):
        check_fields(f"{place / HISTORY}, line {number}", line, LINE)
    _check_layers(place / HISTORY, lines, about)
    return Network(name, lines, about)


def _check_layers(file: Path, lines: Sequence[Line], about: Mapping[str, Any]) -> None:
    """All that is told of layers is told of the same ones."""
    first = next((line["ranks"] for line in lines if "ranks" in line), None)
    forms = None if first is None else [_modes(rank) for rank in first]
    described = about.get("layers")
    if forms and described and forms != [len(layer["full"]) for layer in described]:
        raise ValueError(f"{file} is damaged: its ranks are not of the layers in {RUN}")
    for number, line in enumerate(lines, 1):
        ranks = [_modes(rank) for rank in line["ranks"]] if "ranks" in line else forms
        if ranks != forms or len(line.get("spectra") or forms or []) != len(forms or []):
            raise ValueError(f"{file}, line {number} is damaged: it tells of other layers")


def _modes(rank: Any) -> int:
    return len(rank) if isinstance(rank, list) else 1


def _read_json(file: Path) -> dict[str, Any] | None:
    return read_object(file) if file.exists() else None


def _read_table(file: Path) -> list[list[str]]:
    """The cells of a table in Markdown, without the line below its header."""
    if not file.exists():
        return []
    try:
        with open(file, encoding="utf-8", opener=ordinary) as opened:
            whole = opened.read().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    lines = [line for line in whole if line.startswith("|")]
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
    """What is below these keys, if it is there and a number that can be drawn."""
    found: Any = metrics
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found if type(found) in (int, float) and abs(found) <= MOST else None
