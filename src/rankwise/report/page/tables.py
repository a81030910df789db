"""Tables of the page: runs side by side, options, attacks."""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from rankwise.report.page.facts import MEASURES, facts_of, main_network
from rankwise.report.page.run import Run

LEFT_OUT = ("output", "resume", "overwrite", "save_every", "keep_checkpoints", "threads")
"""Options that do not change what comes out."""


NOTHING = "\u2013"
LONG = re.compile(r"\d+\.\d{5,}")
"""Numbers with more digits than a reader wants."""


class Cell(NamedTuple):
    """Text, and whether it is the best of its row."""

    text: str
    best: bool = False


class Row(NamedTuple):
    """A name and a cell of each run."""

    name: str
    cells: list[Cell]

    @property
    def told(self) -> bool:
        """Whether one of the runs says something here."""
        return any(cell.text != NOTHING for cell in self.cells)


def compared(runs: Sequence[Run]) -> list[Row]:
    """All facts of all runs, the best marked where they differ."""
    facts = [facts_of(run)._asdict() for run in runs]
    rows = []
    for measure in MEASURES:
        values = [f[measure.fact] for f in facts]
        told = [v for v in values if v is not None]
        if not told:
            continue
        best = measure.best(told) if measure.best and len(set(told)) > 1 else None
        cells = [
            Cell(NOTHING) if v is None else Cell(measure.form(v), best is not None and v == best)
            for v in values
        ]
        rows.append(Row(measure.label, cells))
    return rows


def differences(runs: Sequence[Run]) -> list[Row]:
    """Options in which the runs differ."""
    return [row for row in configuration(runs) if len({cell.text for cell in row.cells}) > 1]


def configuration(runs: Sequence[Run]) -> list[Row]:
    """Options, and what stepped the main network of each run."""
    told = [_told(run) for run in runs]
    names = list(dict.fromkeys(name for own in told for name in own))
    return [Row(n, [Cell(own.get(n, NOTHING)) for own in told]) for n in names]


def _told(run: Run) -> dict[str, str]:
    own = {k.replace("_", " "): value(v) for k, v in run.options.items() if k not in LEFT_OUT}
    network = main_network(run)
    about = network.about if network else {}
    parts = {
        f"optimizer: {k.replace('_', ' ')}": LONG.sub(_shortened, v)
        for k, v in about.get("optimizer", {}).items()
        if v
    }
    decay = {g["weight_decay"] for g in about.get("groups", [])}
    if decay:
        parts["optimizer: weight decay"] = ", ".join(f"{d:g}" for d in sorted(decay))
    return own | parts


def _shortened(match: re.Match[str]) -> str:
    return f"{float(match[0]):.4g}"


def surroundings(runs: Sequence[Run]) -> list[Row]:
    """Versions and machines."""
    told = []
    for run in runs:
        about = run.networks[0].about if run.networks else {}
        versions = about.get("versions") or (run.metrics or {}).get("versions") or {}
        machine = {k: value(v) for k, v in about.get("machine", {}).items() if k != "memory"}
        started = {"started": about["started"]} if "started" in about else {}
        told.append({**{k: str(v) for k, v in versions.items()}, **machine, **started})
    names = list(dict.fromkeys(name for own in told for name in own))
    return [Row(n, [Cell(own.get(n, NOTHING)) for own in told]) for n in names]


def value(found: Any) -> str:
    """As one would type it."""
    if found is None:
        return NOTHING
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, str):
        return found
    if isinstance(found, float):
        return f"{found:.4g}"
    if isinstance(found, list) and not any(isinstance(x, (list, dict)) for x in found):
        return " ".join(map(str, found)) or NOTHING
    return json.dumps(found)
