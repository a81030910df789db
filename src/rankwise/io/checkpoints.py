"""A folder of training states: the newest ones, the best one, and which of them is whole."""

import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwise.distributed.team import Team
from rankwise.io.document import Document, read_document, told_of
from rankwise.io.tensor_file import Damaged

NAME = re.compile(r"step-(\d{6,18})\.safetensors")
LAST = 10**18 - 1
"""The greatest step: what 64 bits hold, for it is sent from process to process."""
SCORE = "score"
"""Key of the content."""
NONE = -1
MOST = sys.float_info.max


def step_of(progress: Mapping[str, Any]) -> int:
    """`progress["step"]`; ValueError where there is none to number a file by."""
    step = progress.get("step")
    if type(step) is not int or not 0 <= step <= LAST:
        raise ValueError(
            "`path` is a folder, whose files are numbered by `progress['step']`, an integer from 0 "
            f"to 10^18 - 1; got {step!r}. Or give the path of a file that ends in .safetensors"
        )
    return step


def file_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06}.safetensors"


def steps_in(folder: Path) -> list[int]:
    """Those of the files in `folder`, the newest first; none where there is no folder."""
    found = folder.glob("step-*.safetensors")
    return sorted(
        (int(m[1]) for p in found if (m := NAME.fullmatch(p.name)) and p.is_file()), reverse=True
    )


def check_keeping(keep: int, score: float | None) -> None:
    """ValueError for a `keep` or a `score` that means nothing."""
    if type(keep) is not int or keep < 1:
        raise ValueError(f"`keep` must be an integer of at least 1, got {keep!r}")
    if score is not None and not (isinstance(score, (int, float)) and -MOST < score < MOST):
        raise ValueError(f"`score` must be a finite number (lower is better), got {score!r}")


def check_newest(folder: Path, step: int, *, format: str, version: int) -> None:
    """ValueError if `folder` holds a whole file of a later step: which one would be the newest?

    A damaged one, from before which the run has gone on, is removed.
    """
    for later in [s for s in steps_in(folder) if s > step]:
        file = file_of(folder, later)
        try:
            read_document(file, format=format, version=version)
        except Damaged:
            file.unlink(missing_ok=True)
            continue
        except ValueError as error:
            raise ValueError(
                f"{error}. It would be taken for a later step than {step}: save into another folder"
            ) from error
        raise ValueError(
            f"{file} is of a later step than {step}: load it to go on from there; or remove it, or "
            "save into another folder"
        )


def retain(folder: Path, keep: int, *, format: str) -> None:
    """Remove all files but the newest `keep`, the one of the lowest score, and those of others."""
    old = steps_in(folder)[keep:]
    scores = {step: _score(file_of(folder, step)) for step in steps_in(folder)} if old else {}
    known = {step: score for step, score in scores.items() if score is not None}
    best = min(known, key=known.__getitem__, default=None)
    for step in old:
        file = file_of(folder, step)
        if step != best and not _of_others(file, format):
            file.unlink(missing_ok=True)


def _of_others(file: Path, format: str) -> bool:
    """Whether it is a whole file of something else than this format."""
    try:
        return told_of(file).get("format") != format
    except Damaged:
        return False
    except (OSError, ValueError):
        return True


def newest_whole(folder: Path, team: Team, *, format: str, version: int) -> Document:
    """The newest file that can be read; those after it are warned of by name.

    On several processes the first one chooses for all.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming all, if none is whole.
        RuntimeError: naming the process and its error, on the others.
    """
    found = team.by_first(lambda: _newest_whole(folder, format, version))
    (step,) = team.agreed([NONE if found is None else _step(found.path)])
    file = file_of(folder, step)
    return team.everywhere(lambda: found or read_document(file, format=format, version=version))


def _newest_whole(folder: Path, format: str, version: int) -> Document:
    steps = steps_in(folder)
    flaws: list[str] = []
    if not steps:
        raise FileNotFoundError(f"there is no checkpoint in {folder}, no step-*.safetensors")
    for step in steps:
        try:
            document = read_document(file_of(folder, step), format=format, version=version)
        except (OSError, ValueError) as error:
            flaws.append(str(error))
            continue
        if flaws:
            told = "; ".join(flaws)
            warnings.warn(
                f"{told}. Going on from {document.path}, the newest that is whole",
                RuntimeWarning,
                stacklevel=8,
            )
        return document
    raise ValueError(f"no checkpoint in {folder} is whole: {'; '.join(flaws)}")


def _step(file: Path) -> int:
    match = NAME.fullmatch(file.name)
    assert match is not None
    return int(match[1])


def _score(file: Path) -> float | None:
    """What was told when it was saved; None too where the file cannot be read."""
    try:
        score = told_of(file).get(SCORE)
    except (OSError, ValueError):
        return None
    return score if isinstance(score, (int, float)) else None
