"""The running statistics of norms, which a forward pass changes though its step is skipped."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rankwise.nn.statistics import running_statistics

OWN = ("running_mean", "running_var")


class Statistics:
    """Those of a model, as they were when they were last examined and finite.

    Each process has its own: nothing is sent. What never was finite is left alone.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._good: dict[str, Tensor] = {}
        self.keep()

    def keep(self) -> None:
        """What is finite now is what `mend_` goes back to; the device is waited for once."""
        self._good |= {name: t.clone() for name, t, finite in self._examined() if finite}

    def mend_(self) -> list[str]:
        """Put back what is not finite and was; the names."""
        broken = [(n, t) for n, t, finite in self._examined() if not finite and self._knows(n, t)]
        for name, t in broken:
            t.copy_(self._good[name])
        return [name for name, _ in broken]

    def back_(self) -> None:
        """Put all of them back."""
        for name, t in self._now():
            if self._knows(name, t):
                t.copy_(self._good[name])

    def _knows(self, name: str, t: Tensor) -> bool:
        return name in self._good and self._good[name].shape == t.shape

    def _examined(self) -> Iterator[tuple[str, Tensor, bool]]:
        found = list(self._now())
        if not found:
            return
        device = found[0][1].device
        finite = torch.stack([t.isfinite().all().to(device) for _, t in found]).tolist()
        yield from ((name, t, sound) for (name, t), sound in zip(found, finite, strict=True))

    def _now(self) -> Iterator[tuple[str, Tensor]]:
        for name, t in running_statistics(self._model).items():
            if name.rpartition(".")[2] in OWN and not t.is_meta and not is_lazy(t):
                yield name, t
