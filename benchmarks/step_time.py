"""Seconds per step of each method at equal rank: one process, one thread, alternating, medians.

Timings on a shared machine drift; so every round takes one step of each method in turn, and what
counts is the ratio to LoRA within a round.
"""

import copy
import json
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from methods import Contender, Setting, contend  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from rankwise.recipes.builtin import minilm_folder, movie_reviews  # noqa: E402
from rankwise.recipes.classifier import (  # noqa: E402
    block_maps,
    encode,
    loss_of,
    pretrained_classifier,
)

METHODS = (
    "LoRA",
    "rankwise",
    "rankwise adapting",
    "rankwise augmented",
    "rankwise abc-PSI",
    "AdaLoRA",
    "DoRA",
    "rsLoRA",
    "PiSSA",
    "full",
    "frozen",
)


@dataclass(frozen=True)
class Options:
    """Time one training step of MiniLM, 16 rows, with adapters on all linear maps of its blocks."""

    rank: int = 8
    rounds: int = 30
    output: Path = Path("runs/bench/step_time.json")


def main(options: Options) -> None:
    torch.set_num_threads(1)
    data = movie_reviews(0)
    model, tokenizer = pretrained_classifier(minilm_folder(), 2, 0)
    batch = encode(tokenizer, data.train[:16], 40)
    contenders = {name: contender(name, model, options) for name in METHODS}
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for round_ in range(options.rounds + 2):
        for name, (own, trainer) in contenders.items():
            took = step(own, trainer, batch, round_)
            if round_ >= 2:
                seconds[name].append(took)
    summary = {}
    for name in METHODS:
        ratios = [t / lora for t, lora in zip(seconds[name], seconds["LoRA"], strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)
        summary[name] = {"seconds": statistics.median(seconds[name]), "to_lora": quartiles}
        print(
            f"{name:18s} {summary[name]['seconds']:.3f} s, {quartiles[1]:.2f} x LoRA "
            f"(quartiles {quartiles[0]:.2f} and {quartiles[2]:.2f})"
        )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(summary, indent=1))


def contender(name: str, model: nn.Module, options: Options) -> tuple[nn.Module, Contender]:
    own = copy.deepcopy(model)
    mean_rank = float(options.rank) if name == "rankwise adapting" else None
    steps = 10 * options.rounds
    method = "rankwise" if mean_rank else name
    setting = Setting(method, options.rank, 1e-3, 0, steps, mean_rank=mean_rank)
    if name == "frozen":
        own.encoder.requires_grad_(False)
        # As with an adapter, the gradient has to reach the first block.
        own.encoder.embeddings.LayerNorm.weight.requires_grad_(True)
        optimizer = torch.optim.AdamW([own.encoder.embeddings.LayerNorm.weight], lr=0.0)
        return own, Contender([optimizer], parameters=lambda: 0)
    return own, contend(setting, own.encoder, block_maps(own.encoder))


def step(model: nn.Module, trainer: Contender, batch: dict[str, Tensor], index: int) -> float:
    model.train()
    start = time.perf_counter()
    (loss_of(model, batch) + trainer.penalty()).backward()
    for optimizer in trainer.optimizers:
        optimizer.step()
    trainer.after_step(index)
    for optimizer in trainer.optimizers:
        optimizer.zero_grad()
    return time.perf_counter() - start


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
