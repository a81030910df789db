"""What a reader of files is tried with.

A reader gets bytes and an empty folder. It must return, or raise `ValueError`, `TypeError` or
`OSError` with a message that names the file (for what is no file: that is not empty).
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mutate import Mutation, of_bytes

SEPARATOR = b"\x1e\n"
"""Between the files of a folder, and the parts of a message."""
NAMES = ("a.idx", "model.safetensors", "thin layers of")
"""What names a file to a reader that knows no path of it."""


class Loader(NamedTuple):
    """A reader, and how a sound content looks and is damaged."""

    name: str
    seeds: Callable[[Path], list[bytes]]
    """Sound contents; the folder is to work in."""
    read: Callable[[bytes, Path], object]
    mutations: tuple[Mutation, ...]
    """Of each file of a folder its own; the last of all that follow."""
    named: bool = True
    """Whether it is a file, which messages have to name."""

    def damaged(self, content: bytes, draw: random.Random) -> bytes:
        if draw.random() < 0.05:
            return of_bytes(content, draw)
        parts = content.split(SEPARATOR) if len(self.mutations) > 1 else [content]
        at = draw.randrange(len(parts))
        parts[at] = self.mutations[min(at, len(self.mutations) - 1)](parts[at], draw)
        return SEPARATOR.join(parts)

    def explained(self, message: str, folder: str) -> bool:
        """Whether the message of a refusal says what was refused."""
        return bool(message) and (
            not self.named or folder in message or any(name in message for name in NAMES)
        )
