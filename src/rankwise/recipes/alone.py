"""One process at a time in the folder of a run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # A system without these locks.
    fcntl = None  # type: ignore[assignment]


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within, no other process that asks is let into `folder`, which is made if need be.

    The system's lock of the folder itself ends with the process, however that ends, and leaves no
    file. Where the system has none, as some network disks, nothing is locked. A folder that was
    made here goes again if it stays empty.

    Raises:
        ValueError: if another process is in there.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    # What cannot be made is told by who writes there.
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(folder)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
        with suppress(OSError):
            for place in made:
                place.rmdir()


def _locked(folder: Path) -> int | None:
    if fcntl is None or not os.access(folder, os.R_OK) or not folder.is_dir():
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), folder.stat()):
            return descriptor
    except BlockingIOError as error:
        os.close(descriptor)
        raise ValueError(
            f"another process is at work in {folder}: wait for it, stop it, or name another "
            "--output"
        ) from error
    except OSError:
        pass
    os.close(descriptor)
    return None
