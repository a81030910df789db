"""Bytes, counted and not sampled: of all that lives at once, and of what waits for backward.

On a CPU every storage is followed from the operation that makes it to its end, so that two runs
count the same. What a kernel allocates for itself and frees before it returns is not seen.
"""

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Within, `peak` is the most bytes that lived at once; `held` are there from the start.

    A storage counts once, whatever views there are of it, in its present size. What was there
    before and is not `held`, such as the batch, does not count.
    """

    # Addresses are reused at once. A storage's Python object is not: torch keeps it as long as the
    # storage itself, so that its id names it and a weak reference tells its end.

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._living: dict[int, tuple[weakref.ref[Any], int]] = {}
        self.present = self.peak = 0
        for tensor in held:
            self._follow(tensor)
        self.before = self.present

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {id(t.untyped_storage()) for t in _tensors((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            key = id(tensor.untyped_storage())
            # A view of what was there before, and is not `held`, was not made here.
            if key in self._living or key not in given:
                self._follow(tensor)
        return result

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        reference, before = self._living.get(key, (None, 0))
        if reference is None:
            reference = weakref.ref(storage, lambda _: self._end(key))
        self._living[key] = reference, size
        self.present += size - before
        self.peak = max(self.peak, self.present)

    def _end(self, key: int) -> None:
        self.present -= self._living.pop(key)[1]


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Peak(NamedTuple):
    """The most bytes at once: above what was there before, and with it."""

    above: int
    total: int


def peak_of(run: Callable[[], object], held: Iterable[Tensor], device: torch.device) -> Peak:
    """Of `run()`, beside the tensors `held` before; on a CUDA device as its allocator counts."""
    if device.type == "cuda":
        gc.collect()
        own, allocated = storage_bytes(held), torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        above = torch.cuda.max_memory_allocated(device) - allocated
        return Peak(above, own + above)
    with LiveBytes(held) as live:
        run()
    return Peak(live.peak - live.before, live.peak)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Of distinct storages."""
    return LiveBytes(tensors).present


class _Saved:
    """What autograd keeps in place of a tensor; gone when the graph lets it go."""

    def __init__(self, tensor: Tensor) -> None:
        # A result that is saved by the node that made it would keep that node, and so itself.
        self.tensor = tensor.detach()


@contextmanager
def saved_bytes(own: Iterable[Tensor]) -> Iterator[Callable[[], int]]:
    """Within, the function given counts what autograd has saved, parameters and buffers left out.

    `own` are these; of any other storage all bytes count, once, as long as a graph keeps it.
    """
    spared = {id(storage): storage for storage in (t.untyped_storage() for t in own)}
    saved: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        kept = _Saved(tensor)
        saved.add(kept)
        return kept

    def count() -> int:
        storages = {id(s): s for s in (kept.tensor.untyped_storage() for kept in saved)}
        return sum(s.nbytes() for key, s in storages.items() if key not in spared)

    with saved_tensors_hooks(pack, lambda kept: kept.tensor):
        yield count
