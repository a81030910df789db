"""Files that end: a folder from elsewhere may hold pipes, and links to devices."""

import errno
import os
import stat


def ordinary(path: str, flags: int) -> int:
    """For `open(path, opener=ordinary)`: ValueError for a pipe or a device, instead of waiting."""
    refusal = ValueError(f"{path} is a pipe or a device, and no file")
    try:
        descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        # Of a socket.
        raise refusal if error.errno == errno.ENXIO else error from None
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
        # Of a folder the caller's `open` says what it always says.
        return descriptor
    os.close(descriptor)
    raise refusal
