"""Several files renamed as one, and put back where the system refuses one of them."""

import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def beside(path: Path) -> Path:
    """A name in the same folder for what is there for a while."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def put_in_place(temporaries: Sequence[Path], paths: Sequence[Path]) -> None:
    """Rename all; where that fails, what was there is put back.

    The last is away meanwhile. Each of the others is there at any moment, old or new.

    Raises OSError of the system, or one that names what could not be put back.
    """
    old = {path: beside(path) for path in paths}
    new = [path for path in paths if not os.path.lexists(path)]
    *others, last = paths
    try:
        for path in others:
            if path not in new:
                _hold(path, old[path])
        if last not in new:
            os.replace(last, old[last])
        for temporary, path in zip(temporaries, paths, strict=True):
            os.replace(temporary, path)
    except BaseException:
        _put_back(old, new)
        raise
    for held in old.values():
        with suppress(OSError):
            held.unlink(missing_ok=True)


def _hold(path: Path, held: Path) -> None:
    """A second name for it; its only one, where the system knows no second."""
    try:
        os.link(path, held)
    except OSError:
        os.replace(path, held)


def _put_back(old: dict[Path, Path], new: Sequence[Path]) -> None:
    failed = []
    for path, held in old.items():
        try:
            if path in new:
                path.unlink(missing_ok=True)
            elif os.path.lexists(held):
                os.replace(held, path)
                # Two names of one file are left as they are.
                held.unlink(missing_ok=True)
        except OSError as error:
            failed.append(f"{path} ({error.strerror}), which is now {held}")
    if failed:
        raise OSError(f"could not be put back: {'; '.join(failed)}")
