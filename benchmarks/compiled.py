"""Graphs and milliseconds of MiniLM compiled by regions and by blocks.

First graphs: in each of some steps every low-rank layer gets another rank of 1 to 16 at random,
code is not generated. Then forward and backward at ranks that stay, code by inductor; arms
alternate in one process on one thread.
"""

import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import rankwise as rw  # noqa: E402
from rankwise.nn.low_rank import low_rank_layers  # noqa: E402
from rankwise.numerics.init import truncated_svd  # noqa: E402
from rankwise.recipes.builtin import minilm_folder, movie_reviews  # noqa: E402
from rankwise.recipes.classifier import (  # noqa: E402
    block_maps,
    encode,
    loss_of,
    pretrained_classifier,
)


@dataclass(frozen=True)
class Options:
    """Compile MiniLM with adapters on all linear maps of its blocks, 16 rows of 40 tokens."""

    rank: int = 8
    steps: int = 40
    """Of changing ranks, where graphs are counted."""
    rounds: int = 30
    output: Path = Path("runs/bench/compiled.json")


AS_EAGER = {"fallback_random": True}
"""Random numbers of torch's own kernels: inductor's are slow on a CPU."""


def by_regions(model: nn.Module, **options: Any) -> nn.Module:
    rw.nn.compile_regions(model, **options)
    return model


def by_blocks(model: nn.Module, **options: Any) -> nn.Module:
    for block in model.encoder.encoder.layer:
        block.compile(**options)
    return model


class Counting:
    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        from torch._dynamo.backends.debugging import aot_eager

        self.graphs += 1
        return aot_eager(graph, inputs)


def graphs(
    arm: Callable[..., nn.Module], model: nn.Module, batch: dict[str, Tensor], steps: int
) -> list[int]:
    """Compiled so far after each step, every layer's rank another one in each."""
    torch.compiler.reset()
    draw, backend, counts = torch.Generator().manual_seed(0), Counting(), []
    model = arm(copy.deepcopy(model).train(), backend=backend)
    for _ in range(steps):
        for layer in low_rank_layers(model).values():
            rank = int(torch.randint(1, 17, (), generator=draw))
            layer.set_factors_(truncated_svd(torch.randn(layer.shape, generator=draw), rank))
        loss_of(model, batch).backward()
        counts.append(backend.graphs)
    return counts


def milliseconds(
    models: dict[str, nn.Module], batch: dict[str, Tensor], rounds: int
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in models}
    for k in range(rounds + 3):
        for name, model in models.items():
            start = time.perf_counter()
            loss_of(model, batch).backward()
            model.zero_grad()
            if k >= 3:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def main(options: Options) -> None:
    torch.set_num_threads(1)
    model, tokenizer = pretrained_classifier(minilm_folder(), 2, 0)
    batch = encode(tokenizer, movie_reviews(0).train[:16], 40)
    encoder = model.encoder
    rw.adapt_(encoder, rank=options.rank, select=block_maps(encoder))
    summary: dict[str, Any] = {"graphs": {}, "milliseconds": {}}
    for arm in (by_regions, by_blocks) if options.steps else ():
        counts = summary["graphs"][arm.__name__] = graphs(arm, model, batch, options.steps)
        print(f"{arm.__name__:12s} graphs after each step: {counts}")
    torch.compiler.reset()
    models = {
        "eager": copy.deepcopy(model),
        "by regions": by_regions(copy.deepcopy(model)),
        "by regions, random as eager": by_regions(copy.deepcopy(model), options=AS_EAGER),
        "by blocks, random as eager": by_blocks(copy.deepcopy(model), options=AS_EAGER),
    }
    times = milliseconds({n: m.train() for n, m in models.items()}, batch, options.rounds)
    for name, own in times.items():
        ratios = [a / b for a, b in zip(own, times["eager"], strict=True)]
        summary["milliseconds"][name] = statistics.median(own)
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"{name:28s} {statistics.median(own):6.1f} ms", f"{middle:.3f} ({low:.3f}, {high:.3f})"
        )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
