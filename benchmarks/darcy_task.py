"""Darcy flow from scratch: one run of a network, dense or of low rank."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lenet_task import adamw, geometric
from methods import Contender, Setting
from running import train
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import rankwise as rw
from rankwise.recipes.darcy import (
    SYMMETRIES,
    Flows,
    Scale,
    SolutionOperator,
    darcy,
    mirrored,
    relative_error,
    weights,
)

BATCH, STEPS = 64, 600
WIDTH = 256
SHOWN = 0
"""The flow of the test file that is drawn."""


def run(setting: Setting, bfloat16: bool) -> dict[str, Any]:
    """Train and score; `parameters` are the weights of the network that would run."""
    data = darcy()
    model, contender = start(setting, Scale.of(data.train.u))

    def loss_of(flows: Flows) -> Tensor:
        return relative_error(model(flows.a), flows.u).mean()

    record = train(
        setting,
        model,
        contender,
        batches(data.train, setting.seed),
        loss_of,
        warmup=max(1, setting.steps // 10),
        bfloat16=bfloat16,
    )
    if file := dict(setting.rule).get("file"):
        save_file(model.state_dict(), file)
    return record | scores(model)


def batches(flows: Flows, seed: int) -> Iterator[Flows]:
    """Random rows without end, each batch under a random symmetry."""
    draw = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randint(len(flows.a), (BATCH,), generator=draw)
        symmetry = int(torch.randint(SYMMETRIES, (), generator=draw))
        yield mirrored(Flows(flows.a[rows], flows.u[rows]), symmetry)


def start(setting: Setting, scale: Scale) -> tuple[nn.Module, Contender]:
    """The network before its first step, and what trains it."""
    torch.manual_seed(4000 + setting.seed)
    if setting.method == "dense":
        width = dict(setting.rule)["width"]
        model = SolutionOperator(scale, width)
        return model, adamw(model, setting.lr, lambda: weights(width))
    model = SolutionOperator(scale, WIDTH)
    rw.factorize_(model, rank=setting.rank, init=rw.init.Random(setting.seed))
    return model, geometric(setting, model)


def cut(file: str, ranks: Mapping[str, int]) -> dict[str, Any]:
    """Scores of the trained dense network in `file`, its weights cut to these ranks."""
    model = SolutionOperator(Scale.of(darcy().train.u), WIDTH)
    model.load_state_dict(load_file(file))
    rw.factorize_(model, rank=ranks, init=rw.init.TruncatedSVD())
    return scores(model)


@torch.no_grad()
def scores(model: nn.Module) -> dict[str, Any]:
    """Mean relative errors, how they scatter over flows, and the solution of one flow."""
    data = darcy()
    held_out = relative_error(model(data.held_out.a), data.held_out.u)
    return {
        "eval_loss": float(held_out.mean()),
        "eval_deviation": float(held_out.std()),
        "test_loss": float(relative_error(model(data.test.a), data.test.u).mean()),
        "shown": model(data.test.a[SHOWN : SHOWN + 1])[0].tolist(),
    }
