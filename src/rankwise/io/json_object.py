"""JSON that others may have written: an object, of bounded size and depth, without doubles."""

import json
from pathlib import Path
from typing import Any

from rankwise.io.ordinary import ordinary

MAX_BYTES = 2**26
"""Of a file or text; Python's objects take about thirty times as much."""
MAX_DEPTH = 128
"""Of lists and objects in each other; what walks through them calls itself."""
SHOWN = 80
"""Characters of a value in a message."""


def read_object(path: Path, what: str = "object") -> dict[str, Any]:
    """The object in a file; ValueError, naming it, where there is none, OSError without a file.

    No more of the file is read than `MAX_BYTES`, and nothing of a pipe or a device.
    """
    with open(path, "rb", opener=ordinary) as file:
        content = file.read(MAX_BYTES + 1)
    return parsed(content, str(path), what)


def parsed(text: str | bytes, where: str, what: str = "object") -> dict[str, Any]:
    """The object in `text`; ValueError that begins with `where` and says `what` is missing."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"{where} is damaged: more than {MAX_BYTES >> 20} MiB of JSON")
    try:
        value = json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} is damaged: it holds no {what}")
    if _deeper_than(MAX_DEPTH, value):
        raise ValueError(f"{where} is damaged: more than {MAX_DEPTH} levels of lists and objects")
    return value


def short(value: object) -> str:
    """As in Python, cut: a message is no place for all that a file may hold."""
    try:
        text = repr(value)
    except ValueError:
        # Of an int with more digits than Python prints.
        return f"a {type(value).__name__} too long to print"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"entry {short(name)} occurs twice")
        result[name] = value
    return result


def _deeper_than(levels: int, value: Any) -> bool:
    level = [value]
    for _ in range(levels):
        level = [part for v in level for part in (v.values() if isinstance(v, dict) else v)]
        level = [part for part in level if isinstance(part, (dict, list))]
        if not level:
            return False
    return True
