"""The record of a run, one JSON line a step."""

import json
from collections.abc import Mapping
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

from rankwise.io.atomic import append_text, write_text
from rankwise.io.json_object import parsed
from rankwise.io.ordinary import ordinary
from rankwise.report.fields import CURVE, check_fields

HISTORY = "history.jsonl"
ALWAYS_NUMBERS = ("loss", "gradient_norm")
"""What is `null` in the file where it is not finite, and NaN when it is read."""

Line = dict[str, Any]


def finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no infinity: None in its place."""
    return {name: n if n < inf else None for name, n in numbers.items()}


def append_line(path: Path, line: Line) -> None:
    """Add one step; ValueError for a link, which may lead anywhere."""
    if path.is_symlink():
        raise ValueError(f"{path} is a link, which is not written through: remove it")
    append_text(path, text_of(line))


def write_history(path: Path, lines: list[Line]) -> None:
    """All steps, atomically."""
    write_text(path, "".join(map(text_of, lines)))


def read_history(path: Path) -> list[Line]:
    """All steps; a last line that was cut off by a crash is left out, with what follows it.

    Raises ValueError, naming file and line, where a line is no step that comes after the one
    before.
    """
    lines: list[Line] = []
    for number, text in enumerate(_texts(path), 1):
        where = f"{path}, line {number}"
        try:
            line = parsed(text, where)
        except ValueError:
            break
        check_fields(where, line, CURVE)
        if line.get("step", 0) <= (lines[-1]["step"] if lines else 0):
            raise ValueError(f"{where} is damaged: 'step' must be larger than in the line before")
        lines.append(line | {k: nan for k in ALWAYS_NUMBERS if k in line and line[k] is None})
    return lines


def _texts(path: Path) -> list[str]:
    if not path.exists():
        return []
    try:
        with open(path, encoding="utf-8", opener=ordinary) as file:
            return file.read().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def truncate_history(path: Path, steps: int) -> list[Line]:
    """Keep the first `steps` steps: what was written after the last checkpoint comes again.

    Raises ValueError if steps are missing.
    """
    lines = [line for line in read_history(path) if line["step"] <= steps]
    if len(lines) != steps or any(line["step"] != i for i, line in enumerate(lines, 1)):
        raise ValueError(f"{path} does not hold steps 1 to {steps} of the run to resume")
    write_history(path, lines)
    return lines


def text_of(line: Line) -> str:
    """A step as it is written."""
    told = {k: line[k] if isfinite(line[k]) else None for k in ALWAYS_NUMBERS if k in line}
    return json.dumps(line | told) + "\n"
