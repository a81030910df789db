"""The data of one client."""

from collections.abc import Iterator

import torch
from torch import Tensor

from rankwise.federated.seeds import seed_of
from rankwise.numerics.given import check_integer

Batch = tuple[Tensor, ...]


class Samples:
    """Local data in memory: tensors of which the first dimension counts the samples.

    Args:
        tensors: inputs, labels and whatever else the loss takes, in its order; of equal length.
        batch_size: samples in a step of training, >= 1; None takes all in every step.
        seed: of the order in which batches are drawn. Each round has an order of its own.
    """

    def __init__(self, *tensors: Tensor, batch_size: int | None = None, seed: int = 0) -> None:
        if not tensors:
            raise TypeError("`Samples` needs at least one tensor, such as `Samples(x, y)`")
        for i, t in enumerate(tensors):
            if not isinstance(t, Tensor):
                raise TypeError(f"`Samples` takes tensors, got {type(t).__name__} at place {i}")
        lengths = [t.shape[0] if t.ndim else 0 for t in tensors]
        if len(set(lengths)) > 1 or lengths[0] == 0:
            raise ValueError(f"`Samples` needs tensors of one length >= 1, got lengths {lengths}")
        check_integer("Samples(seed=...)", seed)
        if batch_size is not None:
            check_integer("Samples(batch_size=...)", batch_size)
            if batch_size < 1:
                raise ValueError(f"`Samples(batch_size=...)` must be at least 1, got {batch_size}")
        self.tensors, self.batch_size, self.seed = tensors, batch_size, seed

    def __len__(self) -> int:
        return self.tensors[0].shape[0]

    @property
    def pass_length(self) -> int:
        """Batches until all samples have been drawn once."""
        return 1 if self.batch_size is None else -(-len(self) // self.batch_size)

    def whole(self) -> Iterator[Batch]:
        """All samples once, in order; the last batch may be smaller."""
        return zip(*(t.split(self.batch_size or len(self)) for t in self.tensors), strict=True)

    def batches(self, count: int, *key: int | str) -> Iterator[Batch]:
        """`count` batches of full size from one shuffled pass after the other.

        Args:
            count: of batches, >= 0.
            key: numbers or words; the same key gives the same batches.
        """
        size = self.batch_size
        if size is None or size >= len(self):
            yield from (self.tensors for _ in range(count))
            return
        draw = torch.Generator().manual_seed(seed_of(self.seed, *key))
        left = torch.empty(0, dtype=torch.long)
        for _ in range(count):
            if len(left) < size:
                left = torch.cat([left, torch.randperm(len(self), generator=draw)])
            index, left = left[:size], left[size:]
            yield tuple(t[index.to(t.device)] for t in self.tensors)
