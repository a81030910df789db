"""What `rankwise federate` can train, by name: a start and a method each."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from rankwise.federated import (
    FactorAverage,
    FedAvg,
    FeDLRT,
    FullCorrection,
    MeanStep,
    NoCorrection,
    SimplifiedCorrection,
    SpectralStep,
)
from rankwise.federated.correction import Correction
from rankwise.federated.phase import Method
from rankwise.federated.server_step import ServerStep
from rankwise.recipes.federate_options import FederateOptions
from rankwise.recipes.images import Images
from rankwise.recipes.low_rank_start import FEWEST
from rankwise.recipes.networks import BUILT_IN, network
from rankwise.surgery.factorize import factorize_
from rankwise.surgery.init import Random


@dataclass(frozen=True)
class Falling:
    """`lr` in the first `held` of the rounds, in [0, 1), then linearly towards zero."""

    lr: float
    rounds: int
    held: float = 0.5

    def __call__(self, round: int) -> float:
        return self.lr * min(1.0, (1 - round / self.rounds) / (1 - self.held))


class Contender(NamedTuple):
    """A way to train on the data of many clients."""

    title: str
    method: Callable[[FederateOptions], Method]
    low_rank: bool = True


def corrected_by(correction: Correction) -> Callable[[FederateOptions], Method]:
    """FeDLRT with this correction, as asked otherwise."""
    return lambda options: FeDLRT(
        correction=correction,
        lr=Falling(options.lr, options.rounds),
        steps=options.local_steps,
        rtol=options.tolerance,
        max_rank=options.max_rank,
        gradient_batches=options.gradient_batches,
        direction_dtype=getattr(torch, options.directions),
        server_step=server_step(options),
    )


def server_step(options: FederateOptions) -> ServerStep:
    if options.server_lr == 0:
        return MeanStep()
    return SpectralStep(Falling(options.server_lr, options.rounds, held=0.0))


def fedavg(options: FederateOptions) -> Method:
    return FedAvg(lr=Falling(options.fedavg_lr, options.rounds), steps=options.fedavg_steps)


def factor_average(options: FederateOptions) -> Method:
    return FactorAverage(lr=Falling(options.lr, options.rounds), steps=options.local_steps)


CONTENDERS = {
    "none": Contender("FeDLRT, uncorrected", corrected_by(NoCorrection())),
    "simplified": Contender("FeDLRT, simplified", corrected_by(SimplifiedCorrection())),
    "full": Contender("FeDLRT, full", corrected_by(FullCorrection())),
    "fedavg": Contender("FedAvg", fedavg, low_rank=False),
    "factor-average": Contender("mean of factors", factor_average),
}


def starts(options: FederateOptions, data: Images) -> dict[str, nn.Module]:
    """The network of each contender before the first round; the same for all in low rank."""
    channels, height, width = data.train.shape[1:]
    if options.model in BUILT_IN and height != width:
        raise ValueError(f"--model {options.model} takes square images, got {height}x{width}")
    facts = {"classes": len(data.classes), "channels": channels, "size": height}
    dense = network(options.model, **facts, seed=options.seed)
    found = {}
    for name in options.contenders:
        found[name] = copy.deepcopy(dense)
        if CONTENDERS[name].low_rank:
            start = Random(seed=options.seed)
            factorize_(found[name], rank=options.rank, init=start, min_features=FEWEST)
    return found
