"""Damage to a file: bits that flip, an end that is missing, a file that is gone."""

import random
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[bytes, random.Random], bytes | None]


def flip(data: bytes, draw: random.Random) -> bytes:
    """One bit of all."""
    bit = draw.randrange(8 * len(data))
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def cut(data: bytes, draw: random.Random) -> bytes:
    """Only a first part is left, possibly nothing."""
    return data[: draw.randrange(len(data))]


def zero(data: bytes, draw: random.Random) -> bytes:
    """A page of zeros, as file systems leave it after a power failure."""
    start = draw.randrange(len(data))
    page = data[start : start + 4096]
    changed = data[:start] + bytes(len(page)) + data[start + len(page) :]
    return changed if changed != data else flip(data, draw)


def vanish(data: bytes, draw: random.Random) -> None:
    return None


KINDS: tuple[Damage, ...] = (flip, cut, zero, vanish)


def damage(file: Path, draw: random.Random) -> dict[Path, bytes]:
    """Damage it in one of these ways; what is left of it."""
    data = draw.choice(KINDS)(file.read_bytes(), draw)
    if data is None:
        file.unlink()
        return {}
    file.write_bytes(data)
    return {file: data}
