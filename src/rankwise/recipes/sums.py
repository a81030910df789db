"""SHA256SUMS: what the files of a run were when it ended, as `sha256sum -c` reads it.

Until then it has the options with which the run began.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from rankwise.check.finding import Finding, fault, fine, some, warning
from rankwise.io.atomic import TEMPORARY, write_text
from rankwise.io.ordinary import ordinary

SUMS, METRICS = "SHA256SUMS", "metrics.json"
MADE_LATER = ("report.html",)
LINE = re.compile(r"([0-9a-f]{64})  (.+)")
PIECE = 1 << 20


def write_sums(folder: Path, only: Iterable[str] | None = None) -> None:
    """Sums of all files in `folder` and in the folders within, or of some; written last of all."""
    every = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    names = sorted(every if only is None else only)
    lines = [f"{sum_of(folder / name)}  {name}\n" for name in names if _counts(name)]
    write_text(folder / SUMS, "".join(lines))


def sum_of(file: Path) -> str:
    """SHA-256 of its bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(file, "rb", opener=ordinary) as opened:
        while piece := opened.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def check_sum(folder: Path, name: str) -> None:
    """ValueError if the file is not what the run in `folder` has told of it."""
    wanted = _told(folder / SUMS)[0].get(name) if (folder / SUMS).exists() else None
    if wanted is not None and sum_of(folder / name) != wanted:
        raise ValueError(
            f"{folder / name} is not what the run began with, by its {SUMS}: take it from a copy; "
            f"where you changed it on purpose, remove {folder / SUMS}"
        )


def sums_findings(folder: Path) -> list[Finding]:
    """Which files are no longer what the run left; nothing where it left no sums."""
    name, file = "checksums", folder / SUMS
    if not file.exists():
        return []
    wanted, broken = _told(file)
    missing = [n for n in wanted if not (folder / n).is_file()]
    changed = [n for n in wanted if n not in missing and sum_of(folder / n) != wanted[n]]
    if broken:
        changed.append(SUMS)
    if changed:
        seen = f"{len(changed)} files are not what the run left: {some(changed)}"
        seen += f"; missing: {some(missing)}" if missing else ""
        mend = "take them from a copy; where you changed them on purpose, remove SHA256SUMS"
        return [fault(name, seen, mend)]
    if missing:
        seen = f"{len(missing)} files are missing: {some(missing)}"
        return [warning(name, seen, "take them from a copy, if you did not remove them")]
    if METRICS in wanted:
        return [fine(name, f"{len(wanted)} files are what the run left")]
    if (folder / METRICS).exists():
        seen = "the run was killed before it told the sums of its results"
        return [warning(name, seen, "start it anew to have them; its checkpoints have their own")]
    return [fine(name, f"{some(list(wanted))}: as the run began")]


def _told(file: Path) -> tuple[dict[str, str], bool]:
    """The sums by name; and whether there are lines that are none."""
    with open(file, encoding="utf-8", errors="surrogateescape", opener=ordinary) as opened:
        lines = opened.read().split("\n")
    lines = lines[:-1] if lines[-1] == "" else lines
    matches = [LINE.fullmatch(line) for line in lines]
    wanted = {m[2]: m[1] for m in matches if m and _within(m[2])}
    return wanted, len(wanted) < len(lines)


def _counts(name: str) -> bool:
    """Whether it is of the run, and `sha256sum` writes its name as it is."""
    last = name.rpartition("/")[2]
    ours = name not in (SUMS, *MADE_LATER) and not TEMPORARY.fullmatch(last)
    return ours and name.isprintable() and "\\" not in name


def _within(name: str) -> bool:
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts
