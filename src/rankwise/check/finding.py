"""What a check has found: a verdict, what was seen, and what to do."""

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple


class Verdict(Enum):
    """How bad it is: `OK`, `WARNING` (it may be meant) or `FAULT`."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


class Finding(NamedTuple):
    """The outcome of one check."""

    name: str
    """Of the check, the same whatever it found; see docs/troubleshooting.md."""
    verdict: Verdict
    """How bad it is."""
    seen: str
    """With its numbers."""
    mend: str = ""
    """What to do; empty where nothing is wrong."""

    def __str__(self) -> str:
        line = f"{self.verdict.value}: {self.name}: {self.seen}"
        return f"{line}. Mend: {self.mend}" if self.mend else line


class Findings(tuple[Finding, ...]):
    """All findings of an examination, in order; `print` them."""

    @property
    def worst(self) -> Verdict:
        """The worst verdict; OK if there is no finding."""
        return max((f.verdict for f in self), key=list(Verdict).index, default=Verdict.OK)

    @property
    def bad(self) -> "Findings":
        """Those that are not OK."""
        return Findings(f for f in self if f.verdict is not Verdict.OK)

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "nothing was examined"


def fine(name: str, seen: str) -> Finding:
    return Finding(name, Verdict.OK, seen)


def warning(name: str, seen: str, mend: str) -> Finding:
    return Finding(name, Verdict.WARNING, seen, mend)


def fault(name: str, seen: str, mend: str) -> Finding:
    return Finding(name, Verdict.FAULT, seen, mend)


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few names, and how many there are beside them."""
    listed = [name or "(the model itself)" for name in names]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
