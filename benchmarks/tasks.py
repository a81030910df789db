"""The two tasks: what is trained, in which order the data come, what is measured at the end."""

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import darcy_task
import lenet_task
import torch
from king_james import collate, passages, validation_nll
from methods import CONTROLS, Setting, contend
from running import train
from torch import Tensor

from rankwise.optim.optimizer import Optimizer
from rankwise.recipes.builtin import minilm_folder, movie_reviews
from rankwise.recipes.classifier import (
    block_maps,
    encode,
    evaluate,
    load_pretrained,
    loss_of,
    pretrained_classifier,
)
from rankwise.recipes.examples import batch_at
from rankwise.recipes.king_james import king_james
from rankwise.recipes.smollm2 import smollm2_folder

HEAD_LR = 2e-3
REVIEW_TOKENS = 40
HELD_OUT_PASSAGES = 40
LLAMA_MAPS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Task(NamedTuple):
    """A task by name: how to run a setting, and how long by default."""

    run: Callable[[Setting, bool], dict[str, Any]]
    steps: int
    tail: int
    """Training loss is the mean over this many last steps."""


def reviews(setting: Setting, bfloat16: bool) -> dict[str, Any]:
    """MiniLM on the movie reviews: 16 rows a step, all six linear maps of each block."""
    data = movie_reviews(setting.seed)
    model, tokenizer = pretrained_classifier(minilm_folder(), len(data.classes), setting.seed)
    contender = contend(setting, model.encoder, block_maps(model.encoder))
    control = CONTROLS.get(setting.method)
    contender.optimizers.append(
        Optimizer(model.head, control=control())
        if control
        else torch.optim.AdamW(model.head.parameters(), lr=HEAD_LR, weight_decay=0.0)
    )

    def batches() -> Iterator[dict[str, Tensor]]:
        for step in range(setting.steps):
            chosen = batch_at(step, count=len(data.train), batch_size=16, seed=setting.seed)
            yield encode(tokenizer, [data.train[i] for i in chosen], REVIEW_TOKENS)

    torch.manual_seed(2000 + setting.seed)
    record = train(
        setting,
        model,
        contender,
        batches(),
        lambda batch: loss_of(model, batch),
        warmup=max(1, setting.steps // 10),
        bfloat16=bfloat16,
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        score = evaluate(model, tokenizer, data.held_out, REVIEW_TOKENS)
    return {**record, "eval_loss": score.loss, "accuracy": score.accuracy}


def language(setting: Setting, bfloat16: bool) -> dict[str, Any]:
    """SmolLM2-135M on the King James Bible: 2 passages a step, all 210 linear maps."""
    model, tokenizer = load_pretrained(smollm2_folder(), "AutoModelForCausalLM")
    texts = passages(tokenizer, king_james())
    random.Random(99).shuffle(texts)
    held_out, rest = texts[:HELD_OUT_PASSAGES], texts[HELD_OUT_PASSAGES:]
    targets = [n for n, _ in model.named_modules() if n.endswith(LLAMA_MAPS)]
    contender = contend(setting, model, targets)

    def batches() -> Iterator[dict[str, Tensor]]:
        for step in range(setting.steps):
            chosen = batch_at(step, count=len(rest), batch_size=2, seed=setting.seed)
            yield collate([rest[i] for i in chosen])

    def validate() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return validation_nll(model, held_out)

    record = train(
        setting,
        model,
        contender,
        batches(),
        lambda batch: model(**batch).loss,
        warmup=max(1, setting.steps // 10),
        bfloat16=bfloat16,
        validate=validate,
    )
    first, *_, last = record["checkpoints"]
    after = last["loss"] if last["step"] == setting.steps else float("nan")
    return {**record, "eval_loss": after, "eval_loss_before": first["loss"]}


TASKS = {
    "reviews": Task(reviews, steps=150, tail=30),
    "language": Task(language, steps=50, tail=20),
    "darcy": Task(darcy_task.run, steps=darcy_task.STEPS, tail=50),
    "lenet": Task(lenet_task.run, steps=10 * lenet_task.EPOCH, tail=lenet_task.EPOCH),
}
