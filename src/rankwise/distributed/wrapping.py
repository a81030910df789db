"""DDP around a model that `prepare` has seen."""

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from rankwise.distributed.anchor import is_anchor


def check_wrapping(
    wrapper: Any, model: nn.Module, factors: Sequence[Tensor], group: dist.ProcessGroup | None
) -> None:
    """ValueError unless DDP, which is being made around `model`, leaves `factors` to `group`."""
    ignored = set(getattr(model, "_ddp_params_and_buffers_to_ignore", ()))
    own = {id(p) for p in factors}
    missed = [n for n, p in model.named_parameters() if id(p) in own and n not in ignored]
    if missed:
        raise ValueError(
            f"DDP wraps a {type(model).__name__}, but `rankwise.distributed.prepare` was called "
            f"for another module, such as a part of it, and DDP would reduce {missed[0]!r}. Call "
            "`rankwise.distributed.prepare(model)` with the module that is wrapped"
        )
    groups = [dist.get_process_group_ranks(g) for g in (wrapper.process_group, group)]
    if groups[0] != groups[1]:
        raise ValueError(
            f"DDP averages over the processes {groups[0]}, and the factors of the model over "
            f"{groups[1]}: give `prepare(group=...)` and DDP's `process_group=` the same group"
        )


def rest_anchors_(model: nn.Module) -> None:
    """Anchors stop training where anything else does: DDP would wait for their gradients."""
    ignored = set(getattr(model, "_ddp_params_and_buffers_to_ignore", ()))
    named = model.named_parameters()
    trained = {n: p for n, p in named if p.requires_grad and n not in ignored}
    if not all(map(is_anchor, trained)):
        for name in filter(is_anchor, trained):
            trained[name].requires_grad_(False)


def holds_back(wrapper: Any) -> bool:
    """Whether DDP is within `no_sync`; ValueError within `join`."""
    if wrapper._join_config.enable:
        raise ValueError(
            "`join()` lets a process that has run out of batches answer for DDP's parameters, and "
            "not for the factors of low-rank layers. Give all processes equally many batches, e.g. "
            "by `DataLoader(..., drop_last=True)` or a `DistributedSampler`"
        )
    return not wrapper.require_backward_grad_sync
