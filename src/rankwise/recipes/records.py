"""The texts that a run reads again beside its checkpoint, which tells their sums."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rankwise.recipes.folder import OPTIONS
from rankwise.recipes.sums import sum_of
from rankwise.report.history import HISTORY, Line, text_of


class Records:
    """Sums of the options of a run, in `folder`, and of the `lines` that its history has so far.

    Not of the bytes of the history but of what they say, for it is written anew after a stop.
    """

    def __init__(self, folder: Path, lines: Iterable[Line] = ()) -> None:
        file = folder / OPTIONS
        self._options = sum_of(file) if file.exists() else ""
        self._history = hashlib.sha256()
        for line in lines:
            self.add(line)

    def add(self, line: Line) -> None:
        """The next step."""
        self._history.update(text_of(line).encode())

    def sums(self) -> dict[str, str]:
        """By the names of the files, in hexadecimal digits."""
        return {OPTIONS: self._options, HISTORY: self._history.hexdigest()}

    def check(self, told: Any, checkpoint: Path) -> None:
        """ValueError where `told`, what the checkpoint says, differs; older ones say nothing."""
        known = told if isinstance(told, dict) else {}
        changed = [name for name, own in self.sums().items() if known.get(name, own) != own]
        if changed:
            raise ValueError(
                f"{' and '.join(changed)} beside {checkpoint} are not what they were when it was "
                "written: take them from a copy, or start anew with --overwrite"
            )
