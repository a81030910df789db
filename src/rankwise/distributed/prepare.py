"""Make a model ready for several processes, before DDP, FSDP2 or a trainer takes it in."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rankwise.distributed.anchor import anchor_, is_anchor
from rankwise.distributed.replicas import Replicas
from rankwise.distributed.sharded import is_sharded, tensor_parallel
from rankwise.nn.low_rank import LowRankModule, low_rank_layers


def prepare(
    model: nn.Module,
    *,
    group: dist.ProcessGroup | None = None,
    dtype: torch.dtype | None = None,
) -> Replicas:
    """Let low-rank layers of changing ranks train on several processes; one call, then as usual.

    From now on the factors are rankwise's own business: they start equal on all processes, their
    gradients are averaged in one message at the end of each backward pass, and ranks are agreed
    on. Then wrap `model` in DistributedDataParallel, or hand it to accelerate, to
    `transformers.Trainer` under torchrun or to Lightning with `strategy="ddp"`. Without a wrapper
    it works too, if nothing but factors trains. On a single process it changes nothing, so a script
    runs either way.

    For FSDP2 write `fully_shard(part, ignored_params=set(replicas.factors))`, of the blocks and of
    the whole, and make the optimizer afterwards. Have the model on its device before, for FSDP2
    moves only what it shards. A model that FSDP2 holds already is adapted first and prepared then.

    Args:
        model: with trainable low-rank layers; the very module that is wrapped.
        group: the processes that share the batch; None: all of them.
        dtype: type in which gradients travel, e.g. `torch.bfloat16`; None: their own.

    Returns:
        What keeps the factors together; `.traffic` counts the bytes.

    Raises:
        ValueError: for a model without trainable low-rank layers, factors on several devices or of
            several types, other layers than another process has, a model that is wrapped, a group
            without this process, and for factors or bases that are sharded otherwise than FSDP2
            shards a base.
        TypeError: for a `dtype` that is no floating-point type.
    """
    if isinstance(model, DistributedDataParallel):
        raise ValueError("call `prepare(model)` before the model is wrapped in DDP")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(
            f"`dtype` must be a floating-point type such as torch.bfloat16, got {dtype!r}"
        )
    if group is not None and dist.get_rank(group) < 0:
        raise ValueError("this process is not in `group`: call `prepare` on those that are")
    layers = {n: layer for n, layer in low_rank_layers(model).items() if layer.U.requires_grad}
    if not layers:
        raise ValueError(
            "`model` has no low-rank layer that trains; call `adapt_` or `factorize_` first"
        )
    check_layouts(model, layers)
    factors = [p for layer in layers.values() for p in layer.factor_parameters()]
    check_alike("devices", {str(p.device) for p in factors})
    check_alike("types", {str(p.dtype) for p in factors})
    earlier = {layer.replicas for layer in layers.values() if layer.replicas is not None}
    named = list(model.named_parameters(remove_duplicate=False))
    own = {id(p) for p in factors}
    others = [p for n, p in named if p.requires_grad and id(p) not in own and not is_anchor(n)]
    holders = [m for m in model.modules() if isinstance(m, LowRankModule) and id(m.U) in own]
    wrappers = [one.release() for one in earlier]
    replicas = Replicas(layers, group, dtype, others, holders, next(iter(wrappers), None))
    ignored = set(getattr(model, "_ddp_params_and_buffers_to_ignore", ()))
    ignored |= {n for n, p in named if id(p) in own}
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sorted(ignored))
    if not others:
        anchor_(model)
    replicas.start()
    return replicas


def check_alike(what: str, kinds: set[str]) -> None:
    """ValueError for factors of several devices or types, which make no one message."""
    if len(kinds) > 1:
        raise ValueError(
            f"the factors of `model` are of several {what} ({', '.join(sorted(kinds))}); all must "
            "be of one"
        )


def check_layouts(model: nn.Module, layers: Mapping[str, LowRankModule]) -> None:
    """ValueError for factors that are sharded, and for bases that are tensor-parallel."""
    for name, layer in layers.items():
        if is_sharded(layer.U):
            raise ValueError(
                f"the factors of layer {name!r} are sharded, and a sharded tensor keeps its shape. "
                "Write `replicas = rankwise.distributed.prepare(model)` first, and then "
                "`fully_shard(..., ignored_params=set(replicas.factors))`, on blocks and model"
            )
    bases = {name: layer.base for name, layer in layers.items() if layer.base is not None}
    split = tensor_parallel(model, bases)
    if split is not None:
        raise ValueError(
            f"the base of layer {split[0]!r} is tensor-parallel ({split[1]!r} is split, and "
            "nothing gathers it), and an adapter needs whole inputs and outputs. Use FSDP2 "
            "(`fully_shard`), which gathers each weight for its use, or DDP"
        )
