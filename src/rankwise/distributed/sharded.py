"""Tensors of which each process holds a part, as FSDP2 makes them.

What is called here for a sharded tensor is a collective: every process has to call it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rankwise.distributed.flat import carried


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


def shard_(states: Mapping[Tensor, dict[str, Any]]) -> None:
    """Give the whole tensors of an optimizer's states the layout of the parameters they are of."""
    for p, state in states.items():
        state.update({k: sharded_like(t, p) for k, t in state.items() if isinstance(t, Tensor)})


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Frobenius norm of all entries of ordinary and sharded tensors together, 0-dim."""
    kinds: dict[Any, list[Tensor]] = {}
    for t in tensors:
        kinds.setdefault(_mesh(t), []).append(t)
    norms = [whole(torch.nn.utils.get_total_norm(kind)) for kind in kinds.values()]
    device = norms[0].device if norms else None
    return torch.linalg.vector_norm(torch.stack([n.to(device) for n in norms] or [torch.zeros(())]))


def all_usable(gradients: Sequence[Tensor]) -> bool:
    """Whether no entry is NaN, infinite, or too large; of sharded tensors, on no process.

    Too large are entries from whose squares moments could not be formed: 1e17 in float32, 1e152 in
    float64. Ordinary tensors are taken to be the same everywhere, as gradients are after a
    reduction.
    """
    return _nowhere(_overflows(_locals(gradients)), gradients)


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no entry is NaN or infinite; of sharded tensors, on no process."""
    flags = [t.isfinite().all().logical_not() for t in _locals(tensors)]
    return _nowhere(_any(flags), tensors)


def finite_here(t: Tensor) -> bool:
    """Whether what this process holds of `t` is finite; no collective."""
    return bool(_local(t).isfinite().all())


def _nowhere(found: Tensor, tensors: Sequence[Tensor]) -> bool:
    """Whether `found`, 1 or 0, is 0 on all processes that hold parts of `tensors`."""
    # In the order of the parameters, for all processes have to go through them in the same one.
    meshes = dict.fromkeys(mesh for t in tensors if (mesh := _mesh(t)) is not None)
    if not meshes:
        return not bool(found)
    # A maximum over processes may lose a NaN, a count does not.
    broken = found
    for mesh in meshes:
        for group in mesh.get_all_groups():
            broken = carried(broken, group)
            dist.all_reduce(broken, group=group)
    return not bool(broken)


def _overflows(tensors: Sequence[Tensor]) -> Tensor:
    kinds: dict[Any, list[Tensor]] = {}
    for t in tensors:
        kinds.setdefault((t.device, t.dtype), []).append(t)
    sizes = map(_sizes, kinds.values())
    return _any([(100.0 * size).square().isfinite().all().logical_not() for size in sizes])


def _sizes(tensors: Sequence[Tensor]) -> Tensor:
    """Frobenius norms of tensors of one kind."""
    short = tensors[0].element_size() < 4
    norms = torch._foreach_norm(list(tensors), 2, torch.float32 if short else None)
    return torch.stack(list(norms))


def _any(flags: Sequence[Tensor]) -> Tensor:
    """1.0 if one of them is set, else 0.0; on the device of the first."""
    if not flags:
        return torch.zeros(())
    return torch.stack([flag.to(flags[0].device) for flag in flags]).any().float()


def _locals(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [_local(t) for t in tensors]


def tensor_parallel(model: nn.Module, parts: Mapping[str, nn.Module]) -> tuple[str, str] | None:
    """Of the first of `parts` of `model` that is sharded, but not by FSDP2: name and parameter.

    FSDP2 gathers a weight before it is used; a tensor-parallel layer computes with its own part.
    """
    held = [(name, n, p) for name, part in parts.items() for n, p in part.named_parameters()]
    sharded = [(name, n, p) for name, n, p in held if is_sharded(p)]
    if not sharded:
        return None
    from torch.distributed.fsdp import FSDPModule

    holders = [module for module in model.modules() if isinstance(module, FSDPModule)]
    gathered = {id(p) for module in holders for p in module.parameters()}
    for name, n, p in sharded:
        like: Any = p
        cuts = sum(not placement.is_replicate() for placement in like.placements)
        if id(p) not in gathered or cuts > 1:
            return name, n
    return None


def _mesh(t: Any) -> Any:
    return t.device_mesh if is_sharded(t) else None


def _local(t: Any) -> Tensor:
    return t.to_local() if is_sharded(t) else t
