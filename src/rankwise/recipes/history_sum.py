"""The history that a run reads again beside its checkpoint, which tells its sum."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankwise.report.history import Line, read_history, text_of


class HistorySum:
    """Of the lines that a history has so far, in hexadecimal digits.

    Not of the bytes of the file but of what they say, for it is written anew after a stop.
    """

    def __init__(self, lines: Sequence[Line] = ()) -> None:
        self._digest = hashlib.sha256()
        for line in lines:
            self.add(line)

    def add(self, line: Line) -> None:
        """The next step."""
        self._digest.update(text_of(line).encode())

    def __str__(self) -> str:
        return self._digest.hexdigest()


def sum_up_to(file: Path, steps: int, told: Any, checkpoint: Path) -> HistorySum:
    """Of the first `steps` lines in `file`.

    ValueError unless it is `told`, what the checkpoint of that step says; older ones say None.
    """
    lines = [line for line in read_history(file) if line["step"] <= steps]
    found = HistorySum(lines)
    # What is missing is told by who goes on.
    if told is not None and len(lines) == steps and told != str(found):
        raise ValueError(
            f"{file} is not what it was when {checkpoint} was written: take it from a copy, or "
            "start anew with --overwrite"
        )
    return found
