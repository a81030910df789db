"""Many tensors as one message between processes."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

MODULUS = 2**62 - 1
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes of an entry."""


def flatten(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> Tensor:
    """All entries in one vector, in `dtype` or the widest type among them; at least one tensor."""
    flat = torch.cat([t.detach().reshape(-1) for t in tensors])
    return flat if dtype is None else flat.to(dtype)


def pieces(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The parts of `flat`, with the shapes and types of the tensors that it was made of."""
    parts = flat.split([t.numel() for t in like])
    return [part.view(t.shape).to(t.dtype) for part, t in zip(parts, like, strict=True)]


def digest(tensors: Sequence[Tensor]) -> Tensor:
    """A number in [0, 2^62) that tells tensors apart by any single bit, 0-dim int64.

    Each entry's bits count with an odd weight of their own, modulo 2^64, so that the change of one
    entry always shows, and that of several hides with probability 2^-62. Nothing waits for the
    device, and no more memory is taken than the largest tensor needs.
    """
    total, start = torch.zeros((), dtype=torch.int64, device=tensors[0].device), 0
    for t in tensors:
        words = t.detach().reshape(-1).view(WORDS[t.element_size()])
        end = start + words.shape[0]
        weights = torch.arange(start, end, device=words.device, dtype=torch.int64)
        weights = weights.mul_(0x9E3779B97F4A7C15 - 2**64).bitwise_or_(1)
        total += weights.mul_(words).sum()
        start = end
    return (total ^ (total >> 32)) & MODULUS


def same_everywhere(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> bool:
    """Whether all processes hold the same bits; 16 bytes travel."""
    if not tensors:
        return True
    mark = digest(tensors)
    bounds = carried(torch.stack([mark, -mark]), group)
    dist.all_reduce(bounds, op=dist.ReduceOp.MAX, group=group)
    highest, lowest = bounds.tolist()
    return bool(highest == -lowest)


def carried(t: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """`t` on a device that the group can send from: NCCL has no way for what is on the CPU."""
    if t.device.type == "cpu" and dist.get_backend(group) == "nccl":
        return t.to(torch.device("cuda", torch.cuda.current_device()))
    return t


def first(t: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The first process's `t`, on every process; shapes and types must agree. `t` is kept."""
    message = carried(t, group).clone()
    dist.broadcast(message, group_src=0, group=group)
    return message.to(t.device)
