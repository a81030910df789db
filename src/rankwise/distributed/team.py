"""The processes that share a batch, and what they tell each other."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rankwise.distributed.flat import carried, first, flatten, pieces, same_everywhere

Result = TypeVar("Result")


class Team:
    """A group of processes; None stands for all, and for this one alone where there is no group.

    What sends something has to be called by all of them.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group

    @property
    def together(self) -> bool:
        """Whether there is more than one process."""
        ready = dist.is_available() and dist.is_initialized()
        return ready and dist.get_world_size(self.group) > 1

    @property
    def processes(self) -> int:
        """Number of processes; 1 before there is a process group."""
        return dist.get_world_size(self.group) if self.together else 1

    @property
    def process(self) -> int:
        """Number of this process, from 0."""
        return dist.get_rank(self.group) if self.together else 0

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.process == 0

    def gathered(self, value: Any) -> list[Any]:
        """What every process has as `value`, on all of them; tensors in it are on the CPU."""
        values = [value] * self.processes
        if self.together:
            dist.all_gather_object(values, value, group=self.group)
        return values

    def everywhere(self, work: Callable[[], Result]) -> Result:
        """What `work` returns here, when all have done it; where it fails on one, all fail.

        So none goes on to what all have to do together, and waits there for one that has left.

        Raises:
            RuntimeError: naming the process that failed, on those that did not.
        """
        error: Exception | None = None
        done: list[Result] = []
        try:
            done.append(work())
        except Exception as raised:
            error = raised
        told = self.gathered(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            try:
                raise error
            finally:
                # Its traceback holds this frame, and all that the work held.
                del error
        failed = next((n for n, failure in enumerate(told) if failure is not None), None)
        if failed is not None:
            raise RuntimeError(f"process {failed} failed: {told[failed]}")
        return done[0]

    def by_first(self, work: Callable[[], Result]) -> Result | None:
        """What `work` returns on the first process, None on the others; all wait for it to end."""
        return self.everywhere(work if self.is_first else lambda: None)

    def first_told(self, text: str) -> str:
        """The `text` of the first process that has one, "" where none has."""
        if not self.together:
            return text
        (telling,), _ = self.sums([torch.tensor([bool(text)])], torch.float32)
        return next(filter(None, self.gathered(text))) if telling.item() else ""

    def agreed(self, numbers: Sequence[int]) -> list[int]:
        """The first process's integers; all have equally many."""
        if not self.together or not numbers:
            return list(numbers)
        return [int(n) for n in first(torch.tensor(numbers), self.group).tolist()]

    def same(self, tensors: Sequence[Tensor]) -> bool:
        """Whether all processes hold the same bits."""
        return not self.together or same_everywhere(tensors, self.group)

    @torch.no_grad()
    def take_first_(self, tensors: Sequence[Tensor]) -> None:
        """Give `tensors` the first process's values; types and shapes are the same everywhere."""
        flat = first(flatten(tensors), self.group)
        for t, value in zip(tensors, pieces(flat, tensors), strict=True):
            t.detach().copy_(value)

    def sums(
        self, tensors: Sequence[Tensor], dtype: torch.dtype | None
    ) -> tuple[list[Tensor], int]:
        """The sums over processes, sent in `dtype`; and the bytes of the message."""
        flat = carried(flatten(tensors, dtype), self.group)
        dist.all_reduce(flat, group=self.group)
        return pieces(flat, tensors), flat.numel() * flat.element_size()


class Alone(Team):
    """One process that shares its model with none, whatever others run."""

    def __init__(self) -> None:
        super().__init__(None)

    @property
    def together(self) -> bool:
        return False
