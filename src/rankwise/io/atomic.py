"""Files that appear whole or not at all, and stay when the machine goes down."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rankwise.io.in_place import beside, put_in_place

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp", re.S)
"""Names of what a killed process leaves."""
DEPTH = 3
"""How deep a run's files lie: `dense/checkpoints/x` is the third level."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; at the end what is there replaces `path`.

    If the block raises, `path` is as it was and the temporary file is gone. A killed process
    leaves a file named `.<name>.<random>.tmp` at most.

    Raises:
        IsADirectoryError: if there is a folder of that name.
        OSError: of the kind that the system has told, naming `path`.
    """
    with replacing_together([path]) as (temporary,):
        yield temporary


@contextmanager
def replacing_together(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """The same for files of one folder that are of no use without each other.

    Nothing is replaced before all are written. The last is what readers open first: it is away
    while the others are put in place, so that a crash leaves no mixture of old and new.
    """
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder: give the path of a file")
    folder = paths[0].parent
    temporaries = list(map(beside, paths))
    with telling(paths[0]):
        try:
            make_folder(folder)
            modes = [_new(temporary) for temporary in temporaries]
            yield temporaries
            for temporary, mode in zip(temporaries, modes, strict=True):
                # Some writers leave mode 600; what is saved is as readable as any new file.
                temporary.chmod(mode)
                flush(temporary)
            if len(paths) == 1:
                os.replace(temporaries[0], paths[0])
            else:
                put_in_place(temporaries, paths)
        finally:
            for temporary in temporaries:
                # An error before this one is the one to tell.
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)
    flush_folder(folder)


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """Errors of the system within say that `path` could not be written, and are of their kind."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.strerror is None:
            raise
        told = f"could not be written ({error.strerror}); what was there is as it was"
        raise OSError(error.errno, told, str(path)) from error


def make_folder(folder: Path) -> None:
    """Make it and those that it is in, where they are not there, to stay."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        flush_folder(folder.parent)


def flush_folder(folder: Path) -> None:
    """A file that was renamed has its name after a power failure too, where the system can."""
    with suppress(OSError):
        flush(folder)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes have left of files of the run in `folder`."""
    for depth in range(1, DEPTH + 1):
        for path in folder.glob("/".join([*["*"] * (depth - 1), ".*.tmp"])):
            if TEMPORARY.fullmatch(path.name) and path.is_file():
                path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """One text file (UTF-8), atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_text(path: Path, text: str) -> None:
    """Add to the end of a file (UTF-8); if that fails, it ends where it did.

    A crash can cut what is added.
    """
    with telling(path), path.open("ab", buffering=0) as file:
        size, data = file.tell(), text.encode()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(size)
            raise


def _new(path: Path) -> int:
    """Make the file; its mode."""
    path.touch()
    return path.stat().st_mode


def flush(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
