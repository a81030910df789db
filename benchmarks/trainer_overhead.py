"""What `transformers.Trainer` adds to a step, for rankwise's optimizer and for AdamW on LoRA.

A step of `Trainer` and one of a bare loop alternate in one process on one thread: the bare step is
taken inside a callback, and its time is left out of the trainer's. Both loops do the same: fetch
and collate the same rows, forward, backward, clip, step, schedule. What counts is the ratio of two
neighbouring steps, in seconds that the process computes: neighbours on the machine take no part.
"""

import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader, SequentialSampler  # noqa: E402
from transformers import (  # noqa: E402
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import rankwise as rw  # noqa: E402
from rankwise.integrations.transformers import RankwiseCallback  # noqa: E402
from rankwise.recipes.builtin import minilm_folder, movie_reviews  # noqa: E402
from rankwise.recipes.classifier import (  # noqa: E402
    Classifier,
    block_maps,
    pretrained_classifier,
)

MAX_NORM = 1.0


@dataclass(frozen=True)
class Options:
    """Alternate steps of MiniLM, 16 rows, with adapters on all linear maps of its blocks."""

    rank: int = 8
    rounds: int = 40
    output: Path = Path("runs/bench/trainer_overhead.json")


class WithLoss(nn.Module):
    """What `Trainer` wants of a model."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        logits = self.classifier(input_ids, attention_mask)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def rankwise(model: WithLoss, options: Options) -> torch.optim.Optimizer:
    encoder = model.classifier.encoder
    names = [f"classifier.encoder.{name}" for name in block_maps(encoder)]
    rw.adapt_(model, rank=options.rank, select=names, train="classifier.head")
    optimizer = rw.Optimizer(model)
    size = sum((sum(layer.shape) + 1) * layer.rank for _, layer in optimizer.layers)
    optimizer.rank_rule = rw.Budget(parameters=size // 2, every=10)
    return optimizer


def lora(model: WithLoss, options: Options) -> torch.optim.Optimizer:
    from peft import LoraConfig, inject_adapter_in_model

    encoder = model.classifier.encoder
    config = LoraConfig(
        r=options.rank, lora_alpha=options.rank, target_modules=block_maps(encoder), lora_dropout=0
    )
    inject_adapter_in_model(config, encoder)
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)


class InOrder(Trainer):
    def _get_train_sampler(self, *_: object) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class Alternating(TrainerCallback):
    """Takes a bare step after each of the trainer's, and clocks both."""

    def __init__(self, bare: Callable[[], None]) -> None:
        self.bare = bare
        self.seconds: list[tuple[float, float]] = []
        self._since = 0.0

    def on_train_begin(self, *_: object, **__: object) -> None:
        self._since = time.process_time()

    def on_step_end(self, *_: object, **__: object) -> None:
        start = time.process_time()
        self.bare()
        end = time.process_time()
        self.seconds.append((start - self._since, end - start))
        self._since = time.process_time()


def bare_steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader, steps: int
) -> Callable[[], None]:
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    trained = [p for p in model.parameters() if p.requires_grad]
    batches = iter(loader)
    model.train()

    def step() -> None:
        model(**next(batches))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(trained, MAX_NORM)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    return step


def measured(
    make: Callable[[WithLoss, Options], torch.optim.Optimizer],
    callbacks: list[TrainerCallback],
    options: Options,
) -> list[tuple[float, float]]:
    data = movie_reviews(0)
    classifier, tokenizer = pretrained_classifier(minilm_folder(), 2, 0)
    encoded = partial(tokenizer, truncation=True, max_length=40, return_token_type_ids=False)
    rows = [{**encoded(e.text), "labels": e.label} for e in data.train[: 16 * (options.rounds + 2)]]
    collate = DataCollatorWithPadding(tokenizer)
    model, twin = WithLoss(classifier), WithLoss(copy.deepcopy(classifier))
    steps = options.rounds + 2
    bare = bare_steps(
        twin, make(twin, options), DataLoader(rows, batch_size=16, collate_fn=collate), steps
    )
    clock = Alternating(bare)
    with tempfile.TemporaryDirectory() as folder:
        InOrder(
            model=model,
            args=TrainingArguments(
                output_dir=folder, max_steps=steps, per_device_train_batch_size=16, use_cpu=True,
                save_strategy="no", logging_steps=10, disable_tqdm=True, max_grad_norm=MAX_NORM,
            ),
            train_dataset=rows,
            data_collator=collate,
            optimizers=(make(model, options), None),
            callbacks=[*callbacks, clock],
        ).train()  # fmt: skip
    return clock.seconds[2:]


ARMS = {
    "rankwise": (rankwise, []),
    "rankwise with its callback": (rankwise, [RankwiseCallback]),
    "AdamW on LoRA": (lora, []),
}


def main(options: Options) -> None:
    torch.set_num_threads(1)
    summary = {}
    for name, (make, callbacks) in ARMS.items():
        seconds = measured(make, [callback() for callback in callbacks], options)
        ratios = [trainer / bare for trainer, bare in seconds]
        low, middle, high = statistics.quantiles(ratios, n=4)
        trainer, bare = (statistics.median(column) for column in zip(*seconds, strict=True))
        summary[name] = {"trainer": trainer, "bare": bare, "ratio": [low, middle, high]}
        print(
            f"{name:27s} {trainer:.3f} s, bare loop {bare:.3f} s, ratio {middle:.3f} "
            f"(quartiles {low:.3f} and {high:.3f})"
        )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
