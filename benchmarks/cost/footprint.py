"""The bytes of a training step, by what they are for."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cost.contenders import Arm, Builder
from cost.memory import peak_of, saved_bytes, storage_bytes
from cost.steps import step, update
from cost.workloads import Workload
from rankwise.io.tree import flatten


class Footprint(NamedTuple):
    """Bytes; the largest of a few steps."""

    peak: int
    """Most bytes at once, above the weights of the model without adapters."""
    peak_total: int
    """The same with these weights."""
    activations: int
    """Kept from forward to backward."""
    state: int
    """Of the optimizer."""
    gradients: int
    """Of trained parameters, at the end of backward."""
    trained: int
    """Numbers."""


def footprint(workload: Workload, build: Builder, rank: int, steps: int) -> Footprint:
    """Of the first `steps` steps of a new contender."""
    return footprint_of(build(workload, rank, 2 * steps), workload, steps)


def footprint_of(arm: Arm, workload: Workload, steps: int) -> Footprint:
    """Of the next `2 * steps` steps: peaks are of the first half, their parts of the second."""

    def run() -> None:
        for index in range(steps):
            step(arm, workload, index)

    trained = arm.trainer.parameters()
    weights = storage_bytes(workload.model.state_dict().values())
    peak = peak_of(run, list(held(arm)), workload.device)
    parts = [_parts(arm, workload, steps + index) for index in range(steps)]
    activations, gradients = (max(values) for values in zip(*parts, strict=True))
    state = sum(storage_bytes(_state(optimizer)) for optimizer in arm.trainer.optimizers)
    return Footprint(peak.total - weights, peak.total, activations, state, gradients, trained)


def held(arm: Arm) -> Iterator[Tensor]:
    """All that a contender holds between two steps."""
    yield from arm.model.parameters()
    yield from arm.model.buffers()
    for optimizer in arm.trainer.optimizers:
        yield from _state(optimizer)


def _parts(arm: Arm, workload: Workload, index: int) -> tuple[int, int]:
    """Bytes of activations and of gradients in one step."""
    own = [*arm.model.parameters(), *arm.model.buffers()]
    with saved_bytes(own) as saved:
        loss = workload.loss(arm.model, workload.batch) + arm.trainer.penalty()
        activations = saved()
    loss.backward()
    gradients = [p.grad for p in arm.model.parameters() if p.grad is not None]
    count = storage_bytes(gradients)
    del gradients
    update(arm, index)
    return activations, count


def _state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    tensors: list[Tensor] = []
    flatten(dict(enumerate(optimizer.state.values())), tensors, "state")
    return tensors
