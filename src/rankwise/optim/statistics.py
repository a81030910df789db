"""The running statistics of norms, which a forward pass changes though its step is skipped."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rankwise.nn.statistics import running_statistics

OWN = ("running_mean", "running_var")


class Statistics:
    """Those of a model, as they were when they were last all finite.

    Each process has its own: nothing is sent.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._good: list[tuple[str, Tensor, Tensor]] = []

    def keep(self) -> None:
        """What is finite now is what `mend_` goes back to; the device is waited for once."""
        found = list(self._now())
        self._good = [
            (name, t, t.clone())
            for (name, t), finite in zip(found, _finite([t for _, t in found]), strict=True)
            if finite
        ]

    def mend_(self) -> list[str]:
        """Put back what was finite and is no more; the names."""
        finite = _finite([t for _, t, _ in self._good])
        broken = [kept for kept, sound in zip(self._good, finite, strict=True) if not sound]
        for _, t, before in broken:
            t.copy_(before)
        return [name for name, _, _ in broken]

    def back_(self) -> None:
        """Put all of them back."""
        for _, t, before in self._good:
            t.copy_(before)

    def _now(self) -> Iterator[tuple[str, Tensor]]:
        for name, t in running_statistics(self._model).items():
            if name.rpartition(".")[2] in OWN and not t.is_meta and not is_lazy(t):
                yield name, t


def _finite(tensors: list[Tensor]) -> list[bool]:
    if not tensors:
        return []
    device = tensors[0].device
    return torch.stack([t.isfinite().all().to(device) for t in tensors]).tolist()
