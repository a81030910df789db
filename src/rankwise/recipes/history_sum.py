"""The history that a run reads again beside its checkpoint, which tells its sum."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rankwise.report.history import Line, text_of


class HistorySum:
    """Of the lines that a history has so far, in hexadecimal digits.

    Not of the bytes of the file but of what they say, for it is written anew after a stop.
    """

    def __init__(self, lines: Iterable[Line] = ()) -> None:
        self._digest = hashlib.sha256()
        for line in lines:
            self.add(line)

    def add(self, line: Line) -> None:
        """The next step."""
        self._digest.update(text_of(line).encode())

    def __str__(self) -> str:
        return self._digest.hexdigest()


def check_history(file: Path, lines: Iterable[Line], told: Any, checkpoint: Path) -> None:
    """ValueError unless `told`, of which an older checkpoint has none, is the sum of `lines`."""
    if told is not None and told != str(HistorySum(lines)):
        raise ValueError(
            f"{file} is not what it was when {checkpoint} was written: take it from a copy, or "
            "start anew with --overwrite"
        )
