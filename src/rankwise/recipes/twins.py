"""The low-rank network and its dense twin, each with what trains it."""

import copy
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from rankwise.io.state import dense_trained
from rankwise.optim.guard import Guard
from rankwise.optim.optimizer import Optimizer
from rankwise.optim.rate_free import RateFree
from rankwise.recipes.images import Images, fingerprint
from rankwise.recipes.low_rank_start import Start, rank_rule, start_for
from rankwise.recipes.networks import BUILT_IN, network
from rankwise.recipes.train_options import TrainOptions
from rankwise.recipes.training import Run, warm_up_and_decay
from rankwise.report.size import trained_parameters
from rankwise.surgery.factorize import factorize_
from rankwise.surgery.init import Random

DENSE = "dense"
"""Folder of the dense twin."""
TWIN_LR, TWIN_DECAY = 1e-3, 1.0
"""Of AdamW for the dense twin."""
OWN_LR = 4e-3
"""Of AdamW for what stays dense in the low-rank network."""
LONGEST = 0.5
"""Longest step over the rate: cuts are followed by large gradients."""


class Twins(NamedTuple):
    """Two networks for the same images, and where the low-rank one starts."""

    dense: nn.Module
    low_rank: nn.Module
    start: Start


def twins_for(options: TrainOptions, data: Images) -> Twins:
    """Both as they are before the first step."""
    channels, height, width = data.train.shape[1:]
    if options.model in BUILT_IN and height != width:
        raise ValueError(f"--model {options.model} takes square images, got {height}x{width}")
    facts = {"classes": len(data.classes), "channels": channels, "size": height}
    dense = network(options.model, **facts, seed=options.seed)
    dense.to("cuda" if torch.cuda.is_available() else "cpu")
    start = start_for(dense, options.share)
    return Twins(dense, low_rank_network(dense, start, options.seed), start)


def low_rank_network(dense: nn.Module, start: Start, seed: int) -> nn.Module:
    """A copy of `dense` with random factors of the start's ranks in the place of its weights."""
    model = copy.deepcopy(dense)
    factorize_(model, rank=start.ranks, init=Random(seed=seed))
    return model


def runs_of(twins: Twins, options: TrainOptions, data: Images) -> dict[str, Run]:
    """Of the low-rank network, and of the dense one if it is asked for."""
    steps = options.step_count(len(data.train))
    identity = {"data": fingerprint(data)}

    def run(model: nn.Module, optimizer: Optimizer, part: str) -> Run:
        scheduler = LambdaLR(optimizer, warm_up_and_decay(steps))
        return Run(
            model, optimizer, scheduler, options.output, steps, options.save_every,
            options.keep_checkpoints, identity,
            part=part, parameters=trained_parameters,
        )  # fmt: skip

    runs = {"low_rank": run(twins.low_rank, _optimizer(twins, options, steps), "")}
    if options.dense:
        guard = Guard(rewinds=options.rewinds)
        twin = Optimizer(twins.dense, lr=TWIN_LR, weight_decay=TWIN_DECAY, guard=guard)
        runs["dense"] = run(twins.dense, twin, DENSE)
    return runs


def _optimizer(twins: Twins, options: TrainOptions, steps: int) -> Optimizer:
    model, conditioning = twins.low_rank, options.conditioning()
    rule = rank_rule(twins.start, steps, options.tolerance)
    if conditioning is not None and conditioning.lifts:
        rule = replace(rule, grow=0)
    own: dict[str, Any] = {
        "rank_rule": rule,
        "conditioning": conditioning,
        "guard": Guard(rewinds=options.rewinds),
    }
    if options.rate_free:
        return Optimizer(model, control=RateFree(), **own)
    dense = list(dense_trained(model))
    return Optimizer(
        model,
        lr=options.lr,
        max_step=LONGEST * options.lr,
        weight_decay=options.weight_decay,
        **own,
        groups=[{"params": dense, "lr": OWN_LR}] if dense else [],
    )
