"""A small text classifier that is adapted, data for it, and an optimizer whose ranks change."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import rankwise as rw
from rankwise.numerics.factors import orthonormality_defect
from rankwise.surgery.layers import factored_layers

RANK_RULE = rw.Tolerance(rtol=0.4, every=3, grow=2)
"""Ranks change in steps 1, 3, 4, 6, ... ."""


def classifier(*, dropout: float = 0.1, seed: int = 0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=16,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    rw.adapt_(model, rank=3, select=["query", "value", "dense"], train="classifier")
    return model


def rows(count: int = 48, seed: int = 1) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(50, (count, 7), generator=draw)
    return [{"input_ids": t, "labels": (t[0] > 25).long()} for t in tokens]


def optimizer_of(model: nn.Module, **options: Any) -> rw.Optimizer:
    options = {"lr": 2e-2, "max_step": 0.02, "rank_rule": RANK_RULE, **options}
    return rw.Optimizer(model, **options)


def trainer_of(
    model: nn.Module,
    folder: Path,
    *,
    callbacks: list[Any] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    kind: type[Trainer] = Trainer,
    **options: Any,
) -> Trainer:
    options = {
        "output_dir": str(folder), "per_device_train_batch_size": 8, "max_steps": 12,
        "use_cpu": True, "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, **options,
    }  # fmt: skip
    return kind(
        model=model,
        args=TrainingArguments(**options),
        train_dataset=rows(),
        eval_dataset=rows(16, seed=2),
        optimizers=(optimizer_of(model) if optimizer is None else optimizer, None),
        callbacks=callbacks,
    )


def checkpointing() -> dict[str, Any]:
    """Activation checkpointing as an option of `TrainingArguments`, by the name of this release."""
    newer = "activation_checkpointing"
    name = newer if hasattr(TrainingArguments, newer) else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


def ranks(model: nn.Module) -> list[int]:
    return [layer.rank for layer in factored_layers(model).values()]


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    assert set(states[0]) == set(states[1])
    return all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def largest_defect(model: nn.Module) -> float:
    bases = [Q for layer in factored_layers(model).values() for Q in (layer.U, layer.V)]
    return max(float(orthonormality_defect(Q.detach())) for Q in bases)
