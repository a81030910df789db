"""From scratch: seconds until an accuracy on Fashion-MNIST, dense and in low rank, in turn.

The network is that of `train_step.py`. All arms take the same batches, a few steps each in turn;
the clock of each runs only while it trains. Rates are constant.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from latency import mlp, ranks_at
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import rankwise as rw
from cost.clock import now
from rankwise.init import Random
from rankwise.io.state import dense_trained
from rankwise.recipes.images import Images, read_images, rows_at
from rankwise.recipes.train_options import DEFAULT_DECAY, DEFAULT_LR
from rankwise.recipes.twins import LONGEST, OWN_LR

BATCH = 128
SMOOTH = 3
"""Accuracies that are averaged: the last ones."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is trained, and how far."""

    widths: tuple[int, ...] = (1024, 4096)
    rates: tuple[float, ...] = (3e-4, 1e-3)
    """Of the dense network; the fastest counts."""
    shares: tuple[float, ...] = (0.05, 0.1)
    """Of the weights, for rankwise with the defaults of `rankwise train`."""
    target: float = 0.84
    most_steps: int = 600
    every: int = 10
    """Steps in turn, then the accuracy."""
    tested: int = 2000
    """Images."""


@dataclass
class Arm:
    """A network, its optimizer, its clock and what it has reached."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    seconds: float = 0.0
    course: list[tuple[int, float, float]] = field(default_factory=list)
    """Steps, seconds and accuracy, after each turn."""

    def train(self, batches: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> None:
        start = now(device)
        for x, y in batches:
            cross_entropy(self.model(x), y).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.seconds += now(device) - start

    def smooth(self) -> float:
        """Mean of the last accuracies; 0 while there are too few."""
        last = [accuracy for *_, accuracy in self.course[-SMOOTH:]]
        return statistics.fmean(last) if len(last) == SMOOTH else 0.0


Builder = Callable[[int, torch.device], Arm]


def dense(lr: float) -> Builder:
    def build(width: int, device: torch.device) -> Arm:
        model = _network(width, device)
        return Arm(model, torch.optim.AdamW(model.parameters(), lr=lr, fused=True))

    return build


def low_rank(share: float) -> Builder:
    def build(width: int, device: torch.device) -> Arm:
        model = _network(width, device)
        rw.factorize_(model, rank=ranks_at(model, share), init=Random())
        optimizer = rw.Optimizer(
            model,
            DEFAULT_LR,
            max_step=LONGEST * DEFAULT_LR,
            weight_decay=DEFAULT_DECAY,
            groups=[{"params": list(dense_trained(model)), "lr": OWN_LR}],
        )
        return Arm(model, optimizer)

    return build


def contenders(plan: Plan) -> dict[str, Builder]:
    """By name; a new one is one more entry."""
    return {
        **{f"dense, AdamW fused, rate {lr:g}": dense(lr) for lr in plan.rates},
        **{f"rankwise, {share:.0%} of the weights": low_rank(share) for share in plan.shares},
    }


def measure(width: int, plan: Plan, device: torch.device) -> Row:
    """The course of each contender until the target, and the seconds that it took; None: never."""
    data = read_images("fashion-mnist")
    arms = {name: build(width, device) for name, build in contenders(plan).items()}
    reached: dict[str, float | None] = dict.fromkeys(arms)
    for start in range(0, plan.most_steps, plan.every):
        batches = [_batch(data, start + i, device) for i in range(plan.every)]
        for name, arm in arms.items():
            if reached[name] is None:
                arm.train(batches, device)
                accuracy = _accuracy(arm.model, data, plan.tested, device)
                arm.course.append((start + plan.every, arm.seconds, accuracy))
                reached[name] = arm.seconds if arm.smooth() >= plan.target else None
        if None not in reached.values():
            break
    return {
        "width": width,
        "target": plan.target,
        "seconds": reached,
        "steps": {name: arm.course[-1][0] for name, arm in arms.items()},
        "courses": {name: arm.course for name, arm in arms.items()},
    }


def _network(width: int, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return mlp(784, width, width, width, 10).to(device)


def _batch(data: Images, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows = rows_at(step, count=len(data.train), batch_size=BATCH, seed=0)
    return data.train[rows].flatten(1).to(device), data.labels[rows].to(device)


@torch.no_grad()
def _accuracy(model: nn.Module, data: Images, tested: int, device: torch.device) -> float:
    logits = model(data.test[:tested].flatten(1).to(device))
    return float((logits.argmax(1).cpu() == data.test_labels[:tested]).double().mean())
