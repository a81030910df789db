"""Seeds for what is drawn at random, the same in every process and on every machine."""

import hashlib


def seed_of(*parts: int | str) -> int:
    """A seed in [0, 2^63) for each sequence of numbers and words."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
