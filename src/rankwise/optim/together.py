"""What an optimizer looks after where its model trains on several processes."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from rankwise.distributed.anchor import is_anchor
from rankwise.distributed.prepare import check_layouts
from rankwise.distributed.replicas import ALIGN_EVERY, Replicas
from rankwise.distributed.sharded import is_sharded
from rankwise.integrators.integrator import Integrator
from rankwise.optim.layers import NamedLayer
from rankwise.optim.rank_rule import Candidates, Clock, RankRule


def replicas_of(layers: Sequence[NamedLayer]) -> Replicas | None:
    """What keeps `layers` together; None on a single process. ValueError if it has a part only."""
    found = {id(layer.replicas): layer.replicas for _, layer in layers}
    if len(found) > 1:
        missed = next((name for name, layer in layers if layer.replicas is None), layers[0].name)
        raise ValueError(
            f"layer {missed!r} was made after `rankwise.distributed.prepare(model)`, or prepared "
            "apart from others: call `prepare` once, with the whole model, when all layers are made"
        )
    return next(iter(found.values()), None)


def warn_if_alone(layers: Sequence[NamedLayer]) -> None:
    """Warn where several processes run and nothing keeps the factors of `layers` together."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if layers and several and replicas_of(layers) is None:
        warnings.warn(
            f"{dist.get_world_size()} processes run, and `rankwise.distributed.prepare(model)` was "
            "not called: each process trains factors of its own, by its own batches. If they are "
            "to train one model, call it on every process before the first step",
            stacklevel=2,
        )


def check_whole_gradient(replicas: Replicas | None, integrator: Integrator) -> None:
    """ValueError where an integrator would look at the batch of its own process only."""
    apart = replicas is not None and replicas.processes > 1
    if apart and integrator.same_matrix and integrator.points > 1:
        raise ValueError(
            f"the integrator {type(integrator).__name__} keeps each layer's inputs, and a process "
            "has only those of its own batch. On several processes use ParallelBUG, the default"
        )


def check_parameters(
    model: nn.Module, layers: Sequence[NamedLayer], groups: Sequence[Mapping[str, Any]]
) -> None:
    """ValueError if parameters were replaced or sharded since the optimizer was made.

    Warns of dense parameters whose gradients nothing averages.
    """
    check_layouts(model, dict(layers))
    own = {id(p): name for name, p in model.named_parameters()}
    held = [p for group in groups for p in group["params"]]
    given = {id(p) for p in held}
    left = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in given]
    # One that a user has added and is in no model is nothing to complain of.
    if any(id(p) not in own for p in held) and not all(map(is_anchor, left)):
        raise ValueError(
            "the model has other parameters than when this optimizer was made: something, such as "
            "`fully_shard` or DeepSpeed's ZeRO, has replaced them. Make the optimizer after "
            "`fully_shard`; DeepSpeed is not supported"
        )
    replicas = replicas_of(layers)
    if replicas is None or replicas.processes == 1 or replicas.in_ddp:
        return
    factors = {id(p) for p in replicas.factors}
    dense = (p for p in held if id(p) not in factors and not is_sharded(p))
    alone = [own.get(id(p), "a parameter outside the model") for p in dense]
    if alone:
        warnings.warn(
            f"{alone[0]!r} trains, and neither DDP nor `fully_shard` holds it (nor {len(alone) - 1}"
            " more): unless you average its gradient yourself, each process trains its own. Wrap "
            "the model in DistributedDataParallel, or call `fully_shard` on the whole of it too",
            stacklevel=3,
        )


def ranks_by(
    rule: RankRule, clock: Clock, candidates: Sequence[Candidates], replicas: Replicas | None
) -> list[int]:
    """What `rule` decides, on all processes alike."""
    if not candidates and not rule.may_change(clock):
        return []  # It is no layer's turn.
    ranks = rule.ranks(clock, candidates)
    if replicas is None or not rule.may_change(clock):
        return ranks
    return replicas.agreed(ranks)


def align(
    rule: RankRule, clock: Clock, states: Iterable[Mapping[str, Any]], replicas: Replicas | None
) -> None:
    """Now and then, and where ranks may have changed: have the first process's factors on all."""
    if replicas is not None and (rule.may_change(clock) or clock.step % ALIGN_EVERY == 0):
        replicas.align([t for state in states for t in moments(state)])


def moments(state: Mapping[str, Any]) -> list[Tensor]:
    """All tensors that a rule remembers of a layer, in an order that all processes have."""
    values = (state[name] for name in sorted(state))
    flat = (t for value in values for t in (value if isinstance(value, tuple) else (value,)))
    return [t for t in flat if isinstance(t, Tensor)]
