"""Labelled texts, and the order in which training sees them."""

import random
from collections.abc import Sequence
from typing import NamedTuple


class Example(NamedTuple):
    """A text and the index of its class."""

    text: str
    label: int


class Dataset(NamedTuple):
    """Examples to train on, examples held out, and the names of the classes."""

    train: list[Example]
    held_out: list[Example]
    classes: tuple[str, ...]


def split(
    examples: Sequence[Example], held_out: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """Shuffle, then hold out that many examples; depends on `seed` alone."""
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    return shuffled[held_out:], shuffled[:held_out]


def batch_at(step: int, *, count: int, batch_size: int, seed: int) -> list[int]:
    """Indices of the batch of step 0, 1, ...: every epoch in a new order, no example twice in one.

    A pure function, so that a resumed run sees what an uninterrupted one would have seen. The rest
    of an epoch that does not fill a batch is left out.
    """
    batch_size = min(batch_size, count)
    epoch, place = divmod(step, count // batch_size)
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order[place * batch_size : (place + 1) * batch_size]
