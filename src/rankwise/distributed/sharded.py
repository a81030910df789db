"""Tensors of which each process holds a part, as FSDP2 makes them.

What is called here for a sharded tensor is a collective: every process has to call it.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_sharded(t: Any) -> bool:
    """Whether `t` is a `DTensor`, without importing what makes one."""
    return hasattr(t, "full_tensor") and hasattr(t, "placements")


def whole(t: Tensor) -> Tensor:
    """All of `t`, on every process; an ordinary tensor as it is."""
    sharded: Any = t
    return sharded.full_tensor() if is_sharded(t) else t


def sharded_like(value: Tensor, target: Tensor) -> Tensor:
    """The parts of `value`, which is the same everywhere, in the manner of `target`."""
    like: Any = target
    if not is_sharded(target) or is_sharded(value) or value.shape != target.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh = like.device_mesh
    value = value.to(device=like.to_local().device, dtype=target.dtype)
    return distribute_tensor(value, mesh, like.placements, src_data_rank=None)


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Frobenius norm of all entries of ordinary and sharded tensors together, 0-dim."""
    kinds = [[t for t in tensors if is_sharded(t) is kind] for kind in (False, True)]
    norms = [whole(torch.nn.utils.get_total_norm(kind)) for kind in kinds if kind]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no entry is NaN or infinite; of sharded tensors, on no process.

    Ordinary tensors are taken to be the same everywhere, as gradients are after a reduction.
    """
    # A process may have an empty part, and of nothing there is no largest.
    parts = [part for t in tensors if (part := _local(t)).numel() > 0]
    largest = torch.nn.utils.get_total_norm(parts, float("inf"))
    # In the order of the parameters, for all processes have to go through them in the same one.
    meshes = dict.fromkeys(like.device_mesh for t in tensors if is_sharded(like := _any(t)))
    if not meshes:
        return bool(largest.isfinite())
    # A maximum over processes may lose a NaN, a count does not.
    broken = (~largest.isfinite()).float()
    for mesh in meshes:
        for group in mesh.get_all_groups():
            dist.all_reduce(broken, group=group)
    return not bool(broken)


def _any(t: Any) -> Any:
    return t


def _local(t: Any) -> Tensor:
    return t.to_local() if is_sharded(t) else t
