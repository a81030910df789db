"""Files that end: a folder from elsewhere may hold pipes, and links to devices."""

import os
import stat


def ordinary(path: str, flags: int) -> int:
    """For `open(path, opener=ordinary)`: ValueError for a pipe or a device, instead of waiting."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
        # Of a folder the caller's `open` says what it always says.
        return descriptor
    os.close(descriptor)
    raise ValueError(f"{path} is a pipe or a device, and no file")
