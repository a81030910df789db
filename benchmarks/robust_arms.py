"""The contenders of `robust.py`: networks of one kind, trained or cut to the same size."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

import rankwise as rw
from rankwise import robust
from rankwise.io.state import dense_trained
from rankwise.optim.conditioning import Conditioning
from rankwise.recipes.adversary import adversary
from rankwise.recipes.images import Images, rows_at
from rankwise.recipes.low_rank_start import Start
from rankwise.recipes.train_options import TrainOptions
from rankwise.recipes.training import warm_up_and_decay
from rankwise.recipes.twins import Twins, runs_of, twins_for
from rankwise.report.size import trained_parameters

FACTORS_LR, FACTORS_DECAY = 1e-3, 0.1
"""Of AdamW for two plain factors."""

Trained = tuple[nn.Module, int]
"""A network, and the parameters that it runs with."""


@dataclass(frozen=True)
class Case:
    """What all contenders of a comparison share."""

    data: str
    model: str
    seed: int
    epochs: int
    eps: float = 0.0
    """Of the adversary that they are trained against, of a pixel; 0: none."""


@dataclass
class Ring:
    """A case with its data and starts."""

    case: Case
    images: Images

    def __post_init__(self) -> None:
        self.options = TrainOptions(
            data=self.case.data, model=self.case.model, seed=self.case.seed, epochs=self.case.epochs
        )
        self.twins: Twins = twins_for(self.options, self.images)
        for model in (self.twins.dense, self.twins.low_rank):
            # 1.7 times as fast on a CPU.
            model.to(memory_format=torch.channels_last)
        self.steps = self.options.step_count(len(self.images.train))

    @property
    def start(self) -> Start:
        return self.twins.start

    def rank(self) -> int:
        """The largest rank that all layers can have within the budget."""
        per_rank = sum(m + n + 1 for m, n in self.start.shapes.values())
        return max(1, self.start.budget // per_rank)

    def train(self, model: nn.Module, optimizer: Any) -> None:
        scheduler = LambdaLR(optimizer, warm_up_and_decay(self.steps))
        attacked = adversary(self.images, self.case.eps, 1)
        torch.manual_seed(self.case.seed)
        model.train()
        for step in range(self.steps):
            rows = rows_at(step, count=len(self.images.train), batch_size=128, seed=self.case.seed)
            x, y = self.images.train[rows], self.images.labels[rows]
            x = attacked(model, x, y)
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
            scheduler.step()


def dense(ring: Ring) -> Trained:
    model = copy.deepcopy(ring.twins.dense)
    ring.train(model, rw.Optimizer(model, lr=1e-3, weight_decay=1.0))
    return model, sum(p.numel() for p in model.parameters())


def truncated(ring: Ring, trained: nn.Module) -> Trained:
    """The dense network cut by its singular values, all layers to one rank."""
    model = copy.deepcopy(trained)
    names = list(ring.start.ranks)
    rw.factorize_(model, rank=dict.fromkeys(names, ring.rank()), init=rw.init.TruncatedSVD())
    return model, trained_parameters(rw.Optimizer(model))


def two_factors(ring: Ring) -> Trained:
    """Each weight two plain matrices, trained by AdamW."""
    low = copy.deepcopy(ring.twins.dense)
    ranks = dict.fromkeys(ring.start.ranks, ring.rank())
    rw.factorize_(low, rank=ranks, init=rw.init.Random(seed=ring.case.seed))
    model = rw.shrink(low)
    optimizer = torch.optim.AdamW(model.parameters(), lr=FACTORS_LR, weight_decay=FACTORS_DECAY)
    ring.train(model, optimizer)
    return model, sum(p.numel() for p in model.parameters())


def low_rank(conditioning: Conditioning | None) -> Callable[[Ring], Trained]:
    """As `rankwise train` does it."""

    def trained(ring: Ring) -> Trained:
        twins = ring.twins._replace(low_rank=copy.deepcopy(ring.twins.low_rank))
        run = runs_of(twins, ring.options, ring.images)["low_rank"]
        run.optimizer.conditioning = conditioning
        ring.train(twins.low_rank, run.optimizer)
        return twins.low_rank, trained_parameters(run.optimizer)

    return trained


def condlr(ring: Ring) -> Trained:
    """One rank for all layers from the start, and CondLR's clamp to 1 + tau with tau = 0.5."""
    model = copy.deepcopy(ring.twins.dense)
    ranks = dict.fromkeys(ring.start.ranks, ring.rank())
    rw.factorize_(model, rank=ranks, init=rw.init.Random(seed=ring.case.seed))
    others = list(dense_trained(model))
    optimizer = rw.Optimizer(
        model, lr=0.03, max_step=0.015, weight_decay=0.05,
        conditioning=robust.ConditionLimit(1.5, robust.clipped_about_mean),
        groups=[{"params": others, "lr": 4e-3}],
    )  # fmt: skip
    ring.train(model, optimizer)
    return model, trained_parameters(optimizer)


ARMS: dict[str, Callable[[Ring], Trained]] = {
    "dense": dense,
    "two factors": two_factors,
    "DLRT": low_rank(None),
    "beta 0.1": low_rank(robust.SpreadPenalty(0.1)),
    "beta 0.3": low_rank(robust.SpreadPenalty(0.3)),
    "beta 1": low_rank(robust.SpreadPenalty(1.0)),
    "CondLR clamp": condlr,
    "norm 1": low_rank(robust.NormLimit(1.0)),
    "norm 0.5": low_rank(robust.NormLimit(0.5)),
    "norm 0.4": low_rank(robust.NormLimit(0.4)),
}
TRUNCATED = "truncated SVD"
"""An arm without a training of its own."""
AGAINST = ("dense", "DLRT", "norm 1")
"""Those that are trained against an adversary as well."""
