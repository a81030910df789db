"""Seeds for what is drawn at random, the same in every process and on every machine."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


def seed_of(*parts: int | str) -> int:
    """A seed in [0, 2^63) for each sequence of numbers and words."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def seeded(seed: int, devices: Iterable[torch.device]) -> Iterator[None]:
    """Dropout and the like draw from `seed`; afterwards the generators are as they were."""
    cuda = sorted(d.index for d in devices if d.type == "cuda")
    with torch.random.fork_rng(devices=cuda):
        # `torch.manual_seed` would touch every device, and queue where CUDA has not started.
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
