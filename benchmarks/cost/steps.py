"""Whole training steps, timed in their three phases, contenders in turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from cost.clock import now
from cost.contenders import Arm, Builder, steps_always
from cost.workloads import Workload


class Seconds(NamedTuple):
    """Of one step; `stock` is what AdamW takes for as many parameters, no part of the step."""

    forward: float
    backward: float
    optimizer: float
    stock: float = 0.0

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.optimizer


@dataclass(frozen=True)
class Course:
    """A contender's steps."""

    arm: Arm
    parameters: list[int]
    """Trained numbers at the start and after each step."""
    rounds: dict[int, Seconds] = field(default_factory=dict)
    """By round."""

    def totals(self) -> dict[int, float]:
        return {i: seconds.total for i, seconds in self.rounds.items()}


class StockAdamW:
    """Torch's AdamW on two factors for each layer, of the ranks that another's layers have now.

    What an optimizer takes beyond it is the price of geometry.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], device: torch.device) -> None:
        self._shapes = shapes
        self._device = device
        self._ranks: dict[str, int] = {}
        self._optimizer: torch.optim.Optimizer | None = None

    def seconds(self, ranks: Mapping[str, int]) -> float:
        if ranks != self._ranks or self._optimizer is None:
            self._ranks, self._optimizer = dict(ranks), self._made(ranks)
            self._optimizer.step()
        start = now(self._device)
        self._optimizer.step()
        return now(self._device) - start

    def _made(self, ranks: Mapping[str, int]) -> torch.optim.Optimizer:
        factors = []
        for name, r in ranks.items():
            m, n = self._shapes[name]
            for shape in ((m, r), (r, n)):
                factor = nn.Parameter(torch.randn(shape, device=self._device))
                factor.grad = torch.randn_like(factor)
                factors.append(factor)
        return torch.optim.AdamW(factors, lr=1e-3, weight_decay=0.0)


def step(arm: Arm, workload: Workload, index: int) -> Seconds:
    """One training step."""
    trainer, device = arm.trainer, workload.device
    start = now(device)
    loss = workload.loss(arm.model, workload.batch) + trainer.penalty()
    forward = now(device)
    loss.backward()
    backward = now(device)
    update(arm, index)
    return Seconds(forward - start, backward - forward, now(device) - backward)


def update(arm: Arm, index: int) -> None:
    """What follows the backward pass."""
    for optimizer in arm.trainer.optimizers:
        optimizer.step()
    arm.trainer.after_step(index)
    for optimizer in arm.trainer.optimizers:
        optimizer.zero_grad()


def courses(
    workload: Workload, builders: Mapping[str, Builder], rank: int, rounds: int, sit_out: int
) -> dict[str, Course]:
    """Steps 1 to `rounds` of each contender; those of constant cost take every `sit_out`-th.

    Before that each takes one step as a throw-away copy, so that no first call counts.
    """
    taking = {name: _turns(name, rounds, sit_out) for name in builders}
    for build in builders.values():
        step(build(workload, rank, rounds), workload, 0)
    arms = {name: build(workload, rank, len(taking[name])) for name, build in builders.items()}
    found = {name: Course(arm, [arm.trainer.parameters()]) for name, arm in arms.items()}
    shapes = workload.targets()
    stock = {name: StockAdamW(shapes, workload.device) for name in found}
    for round_ in range(rounds):
        for name, course in found.items():
            if round_ in taking[name]:
                ranks = course.arm.trainer.ranks()
                seconds = step(course.arm, workload, len(course.rounds))
                beside = stock[name].seconds(ranks) if ranks else 0.0
                course.rounds[round_] = seconds._replace(stock=beside)
                course.parameters.append(course.arm.trainer.parameters())
    return found


def _turns(name: str, rounds: int, sit_out: int) -> Sequence[int]:
    return range(0, rounds, 1 if steps_always(name) else sit_out)
