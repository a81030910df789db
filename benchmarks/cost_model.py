"""Predicted against measured: seconds and peak memory of a training step, for four ways to train.

Speeds of the machine are measured anew before each round, so that both are of the same minute.
Seconds: of the one thread itself, so that what else runs only counts by the caches that it takes;
every way in turn, the least of a few steps in each round; the table has the
median over rounds. Memory: in a process
of its own, the growth of its resident set.
"""

import copy
import ctypes
import gc
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from tables import table  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import rankwise as rw  # noqa: E402
from rankwise.cost import StepCost, StepCosts, measure_machine, step_costs  # noqa: E402
from rankwise.recipes.builtin import minilm_folder, movie_reviews  # noqa: E402
from rankwise.recipes.classifier import (  # noqa: E402
    block_maps,
    encode,
    load_pretrained,
    pretrained_classifier,
)
from rankwise.recipes.memory import model_bytes, optimizer_bytes  # noqa: E402
from rankwise.recipes.smollm2 import smollm2_folder  # noqa: E402
from rankwise.recipes.vision_transformer import VisionTransformer  # noqa: E402
from rankwise.surgery.places import call  # noqa: E402

WAYS = ("frozen", "low rank", "LoRA", "full")
ALLOCATOR = (-1, -3)
"""glibc's `M_TRIM_THRESHOLD` and `M_MMAP_THRESHOLD`: above them, what is freed goes back."""


@dataclass(frozen=True)
class Options:
    """Predict a step of each task, and measure it."""

    tasks: tuple[str, ...] = ("minilm", "vit", "smollm2")
    ranks: tuple[int, ...] = (8, 64)
    rounds: int = 5
    steps: int = 3
    """Of each way in a round."""
    output: Path = Path("runs/bench/cost_model.json")


class Subject(NamedTuple):
    """A model, a batch, and the linear maps to be adapted."""

    model: nn.Module
    example: Any
    maps: list[str]


def minilm() -> Subject:
    """16 reviews of up to 40 tokens, every map of the blocks."""
    model, tokenizer = pretrained_classifier(minilm_folder(), 2, 0)
    batch = encode(tokenizer, movie_reviews(0).train[:16], 40)
    del batch["labels"]
    return Subject(model, batch, [f"encoder.{name}" for name in block_maps(model.encoder)])


def smollm2() -> Subject:
    """Two rows of 128 tokens, every map of the blocks; the model computes its loss."""
    model, _ = load_pretrained(smollm2_folder(), "AutoModelForCausalLM")
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (2, 128), generator=draw)
    return Subject(model, {"input_ids": ids, "labels": ids}, block_maps(model))


def vit() -> Subject:
    """16 images of 64 patches, width 384, six blocks."""
    torch.manual_seed(0)
    model = VisionTransformer(10, channels=3, size=64, patch=8, width=384, depth=6)
    maps = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "blocks" in n]
    return Subject(model, torch.randn(16, 3, 64, 64), maps)


TASKS: dict[str, Callable[[], Subject]] = {"minilm": minilm, "smollm2": smollm2, "vit": vit}


class Trainer:
    """One way to train a copy of a subject."""

    def __init__(self, way: str, subject: Subject, rank: int) -> None:
        self.model, self.example = copy.deepcopy(subject.model), subject.example
        self.model.requires_grad_(way == "full").train()
        first = self.model.get_submodule(subject.maps[0])
        if way == "frozen":
            # As with an adapter, the gradient has to reach the first adapted layer.
            first.register_forward_hook(_differentiable)
        if way == "low rank":
            rw.adapt_(self.model, rank=rank, select=subject.maps)
        if way == "LoRA":
            from peft import LoraConfig, inject_adapter_in_model

            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=subject.maps)
            inject_adapter_in_model(config, self.model)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer: Any = None
        if way == "low rank":
            self.optimizer = rw.Optimizer(self.model)
        elif trained:
            self.optimizer = torch.optim.AdamW(trained)

    def step(self) -> tuple[float, float, float]:
        """Seconds of forward, backward and optimizer."""
        marks = [time.thread_time()]
        loss = loss_of(call(self.model, self.example))
        marks.append(time.thread_time())
        loss.backward()
        marks.append(time.thread_time())
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        marks.append(time.thread_time())
        return marks[1] - marks[0], marks[2] - marks[1], marks[3] - marks[2]


def _differentiable(module: nn.Module, inputs: Any, y: Tensor) -> None:
    y.requires_grad_()


def loss_of(out: Any) -> Tensor:
    loss = getattr(out, "loss", None)
    return out.square().mean() if loss is None else loss


def predicted(subject: Subject, rank: int) -> StepCosts:
    return step_costs(
        subject.model,
        lambda: call(subject.model, subject.example),
        ranks=dict.fromkeys(subject.maps, rank),
        machine=measure_machine(again=True),
    )


def seconds(subject: Subject, rank: int, options: Options) -> dict[str, list[dict[str, Any]]]:
    """Predicted and measured seconds of each way, by round."""
    trainers = {way: Trainer(way, subject, rank) for way in WAYS}
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for trainer in trainers.values():
        trainer.step()
    for _ in range(options.rounds):
        costs = predicted(subject, rank).rows()
        times: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
        for _ in range(options.steps):
            for way, trainer in trainers.items():
                times[way].append(trainer.step())
        for way in WAYS:
            cost = costs[way]
            found[way].append(
                {
                    "predicted": [cost.forward, cost.backward, cost.optimizer],
                    "measured": [min(part) for part in zip(*times[way], strict=True)],
                }
            )
    return found


def peaks(name: str, rank: int) -> dict[str, int]:
    """Bytes of weights and optimizer, counted, and by how much the process grows in a step."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peaks, (name, rank))


def _peaks(name: str, rank: int) -> dict[str, int]:
    libc = ctypes.CDLL(None)
    for option in ALLOCATOR:
        libc.mallopt(option, 1 << 16)
    torch.set_num_threads(1)
    subject = TASKS[name]()
    return {way: _peak(way, subject, rank, libc) for way in WAYS}


def _peak(way: str, subject: Subject, rank: int, libc: Any) -> int:
    trainer = Trainer(way, subject, rank)
    trainer.step()  # What libraries keep for good, and the optimizer's state.
    gc.collect()
    libc.malloc_trim(0)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(2):
        trainer.step()
    state = 0 if trainer.optimizer is None else optimizer_bytes(trainer.optimizer)
    return _resident("VmHWM") - before + model_bytes(trainer.model) + state


def _resident(entry: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(entry))
    return int(line.split()[1]) * 1024


def row(name: str, rank: int, way: str, rounds: list[dict[str, Any]], cost: StepCost, bytes_: int):
    ratios = [sum(r["predicted"]) / sum(r["measured"]) for r in rounds]
    parts = [
        statistics.median(
            r["predicted"][i] / r["measured"][i] if r["measured"][i] > 1e-4 else 1.0 for r in rounds
        )
        for i in range(3)
    ]
    took = statistics.median(sum(r["measured"]) for r in rounds)
    said = statistics.median(sum(r["predicted"]) for r in rounds)
    return [
        name,
        str(rank),
        way,
        f"{1e3 * said:.0f}",
        f"{1e3 * took:.0f}",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        *(f"{part:.2f}" for part in parts),
        f"{cost.peak / 2**20:.0f}",
        f"{bytes_ / 2**20:.0f}",
        f"{cost.peak / bytes_:.2f}",
    ]


HEADER = (
    "task,rank,step,ms predicted,ms measured,ratio,forward,backward,optimizer,"
    "peak MiB predicted,measured,ratio"
).split(",")


def main(options: Options) -> None:
    torch.set_num_threads(1)
    lines, records = [HEADER], []
    for name in options.tasks:
        subject = TASKS[name]()
        call(subject.model, subject.example)
        for rank in options.ranks:
            cost = predicted(subject, rank).rows()
            bytes_ = peaks(name, rank)
            found = seconds(subject, rank, options)
            for way in WAYS:
                lines.append(row(name, rank, way, found[way], cost[way], bytes_[way]))
                records.append(
                    {"task": name, "rank": rank, "way": way, "rounds": found[way],
                     "peak": {"predicted": cost[way].peak, "measured": bytes_[way]}}
                )  # fmt: skip
            print(table(lines), flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    settings = {**asdict(options), "output": str(options.output)}
    options.output.write_text(json.dumps({"settings": settings, "records": records}, indent=1))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
