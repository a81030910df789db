"""The record of a run, one JSON line a step."""

import json
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.io.atomic import write_text

Line = dict[str, Any]


class Watcher(NamedTuple):
    """Who is told how a run goes."""

    say: Callable[[str], None]
    step: Callable[[Line], None]
    expect: Callable[[int], None] = lambda steps: None
    """How many steps there are, once that is known."""
    tell: Callable[[str], None] = lambda message: None
    """What is worth a line that stays."""


def finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no infinity: None in its place."""
    return {name: n if n < inf else None for name, n in numbers.items()}


def append_line(path: Path, line: Line) -> None:
    """Add one step."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_history(path: Path) -> list[Line]:
    """All steps; a last line that was cut off by a crash is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def truncate_history(path: Path, steps: int) -> list[Line]:
    """Keep the first `steps` steps: what was written after the last checkpoint comes again.

    Raises ValueError if steps are missing.
    """
    lines = [line for line in read_history(path) if line["step"] <= steps]
    if [line["step"] for line in lines] != list(range(1, steps + 1)):
        raise ValueError(f"{path} does not hold steps 1 to {steps} of the run to resume")
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    return lines
