"""LeNet-5 on MNIST from scratch: one run of a method at a compression."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from methods import CONTROLS, Contender, Setting
from running import train
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import rankwise as rw
from rankwise.recipes.lenet import (
    DENSE_WEIGHTS,
    MAPS,
    SHAPES,
    dense_lenet,
    lenet,
    low_rank_lenet,
    truncated_lenet,
    weights,
)
from rankwise.recipes.mnist import mnist

BATCH, ROWS = 128, 60_000
EPOCH = ROWS // BATCH
BIAS_LR = 4e-3
CYCLE, KEEP = 100, 0.9
LONGEST = 0.5
"""Longest step over the rate: cuts are followed by large gradients."""


def run(setting: Setting, bfloat16: bool) -> dict[str, Any]:
    """Train and score; `parameters` are the weights of the network that would run."""
    data, options = mnist(), dict(setting.rule)
    torch.manual_seed(3000 + setting.seed)
    model, contender, record = start(setting, options)
    if setting.method == "SVD":
        record["accuracy_before"] = score(model, data.held_out_images, data.held_out_digits)[1]
    order = torch.Generator().manual_seed(setting.seed)

    def batches() -> Iterator[Tensor]:
        while True:
            yield from torch.randperm(ROWS, generator=order)[: EPOCH * BATCH].split(BATCH)

    record |= train(
        setting,
        model,
        contender,
        batches(),
        lambda rows: cross_entropy(model(data.images[rows]), data.digits[rows]),
        warmup=max(1, setting.steps // 10),
        bfloat16=bfloat16,
    )
    if setting.method == "dense" and "file" in options:
        save_file(model.state_dict(), options["file"])
    loss, accuracy = score(model, data.held_out_images, data.held_out_digits)
    return {**record, "eval_loss": loss, "accuracy": accuracy}


def start(setting: Setting, options: dict[str, Any]) -> tuple[nn.Module, Contender, dict[str, Any]]:
    """The network before its first step, and what trains it."""
    match setting.method:
        case "dense":
            dense = dense_lenet(setting.seed)
            return dense, adamw(dense, setting.lr, lambda: DENSE_WEIGHTS), {}
        case "two factors" | "SVD":
            low_rank = low_rank_lenet(options["ranks"], setting.seed)
            if setting.method == "SVD":
                dense = dense_lenet(setting.seed)
                dense.load_state_dict(load_file(options["file"]))
                low_rank = truncated_lenet(dense, options["ranks"])
            model = two_factors(low_rank)
            return model, adamw(model, setting.lr, lambda: weights(options["ranks"])), {}
    ranks = [min(setting.rank, r) for r in break_even()]
    model = low_rank_lenet(ranks, setting.seed)
    return model, geometric(setting, model), {"start": weights(ranks)}


def geometric(setting: Setting, model: nn.Module) -> Contender:
    rank_rule: Any = rw.FixedRank()
    if setting.rank_rule:
        rank_rule = rw.Budget(**{"every": CYCLE, "keep": KEEP, **dict(setting.rank_rule)})
    control = CONTROLS.get(setting.method)
    options: dict[str, Any] = {"max_step": LONGEST * setting.lr, **dict(setting.optimizer)}
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    optimizer = rw.Optimizer(
        model,
        lr=setting.lr,
        rank_rule=rank_rule,
        **({"control": control()} if control else options),
        groups=[] if control else [{"params": biases, "lr": BIAS_LR}],
    )
    return Contender(
        [optimizer],
        parameters=lambda: sum(held(layer.rank, *layer.shape) for _, layer in optimizer.layers),
        ranks=lambda: {name: layer.rank for name, layer in optimizer.layers},
    )


def held(rank: int, m: int, n: int) -> int:
    """Numbers of a layer that runs: two factors, or dense if that is less."""
    return min(rank * (m + n), m * n)


def adamw(model: nn.Module, lr: float, parameters: Any) -> Contender:
    return Contender([torch.optim.AdamW(model.parameters(), lr, weight_decay=0.0)], parameters)


def two_factors(model: nn.Sequential) -> nn.Sequential:
    """The same function with `W = (U sqrt(S)) (sqrt(S) V^T)`, as users of LoRA would train it."""
    maps: list[nn.Module] = []
    for place in MAPS:
        layer = model[place]
        P, sigma, Qh = torch.linalg.svd(layer.factors().S)
        root = sigma.sqrt()
        B, A = layer.U.detach() @ P * root, root[:, None] * Qh @ layer.V.detach().mT
        convolution = place < MAPS[2]
        if convolution:
            inner: nn.Module = nn.Conv2d(layer.in_channels, len(A), 5, bias=False)
            outer: nn.Module = nn.Conv2d(len(A), layer.out_channels, 1)
        else:
            inner = nn.Linear(layer.in_features, len(A), bias=False)
            outer = nn.Linear(len(A), layer.out_features)
        with torch.no_grad():
            inner.weight.copy_(A.reshape(inner.weight.shape))
            outer.weight.copy_(B.reshape(outer.weight.shape))
            outer.bias.copy_(layer.bias)
        maps.append(nn.Sequential(inner, outer))
    return lenet(maps)


def break_even() -> Sequence[int]:
    """The highest ranks at which two factors hold fewer numbers than the weight."""
    return [(m * n - 1) // (m + n) for m, n in SHAPES]


@torch.no_grad()
def score(model: nn.Module, images: Tensor, digits: Tensor) -> tuple[float, float]:
    """Loss and accuracy."""
    logits = torch.cat([model(part) for part in images.split(1000)])
    right = (logits.argmax(1) == digits).float().mean()
    return float(cross_entropy(logits, digits)), float(right)
