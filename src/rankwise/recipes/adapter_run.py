"""What both kinds of fine-tuning share: the optimizer, the run, its numbers, its export."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from rankwise.io.export_lora import LoraExport, export_lora
from rankwise.optim.guard import Guard, met
from rankwise.optim.optimizer import Optimizer
from rankwise.optim.rate_free import RateFree
from rankwise.recipes.history import Line
from rankwise.recipes.options import FinetuneOptions
from rankwise.recipes.ranks import chosen_rank_rule
from rankwise.recipes.training import Run, warm_up_and_decay
from rankwise.report.machine import peak_memory, versions

FIGURE, LORA = "ranks.png", "lora"
TAIL = 30
PACKAGES = ("rankwise", "torch", "safetensors", "transformers", "tokenizers")


class Outcome(NamedTuple):
    """What a finished run leaves, beside its files."""

    metrics: dict[str, Any]
    history: list[Line]
    export: LoraExport | None
    folder: Path


def adapter_run(
    options: FinetuneOptions,
    model: nn.Module,
    identity: dict[str, Any],
    groups: Sequence[dict[str, Any]] = (),
) -> Run:
    """The run of an adapted model; `groups` as the optimizer takes them."""
    optimizer = _optimizer(options, model, groups)
    optimizer.rank_rule = chosen_rank_rule(options, optimizer.layers)
    return Run(
        model=model,
        optimizer=optimizer,
        scheduler=LambdaLR(optimizer, warm_up_and_decay(options.total_steps)),
        folder=options.output,
        steps=options.total_steps,
        save_every=options.save_every,
        keep=options.keep_checkpoints,
        identity=identity,
    )


def run_metrics(
    options: FinetuneOptions, run: Run, history: Sequence[Line], prefix: str = ""
) -> dict[str, Any]:
    """Numbers of a finished run; layers are named without `prefix`."""
    tail = [line["loss"] for line in history[-TAIL:]]
    sizes = [line["parameters"] for line in history]
    layers = run.optimizer.layers
    initial = sum(min(options.rank, *layer.shape) * (sum(layer.shape) + 1) for _, layer in layers)
    return {
        "train_loss": statistics.fmean(tail),
        "ranks": {name.removeprefix(prefix): layer.rank for name, layer in layers},
        "parameters": {"start": initial, "end": sizes[-1], "mean": statistics.fmean(sizes)},
        "seconds_per_step": statistics.median(line["seconds"] for line in history),
        "peak_memory_bytes": peak_memory(),
        "steps": run.optimizer.steps,
        "skipped_steps": run.optimizer.skipped,
        "incidents": met(run.optimizer.incidents),
        "seed": options.seed,
        "options": options.to_json(),
        "rank_rule": repr(run.optimizer.rank_rule),
        "rule": repr(run.optimizer.rule),
        "control": repr(run.optimizer.control),
        "versions": versions(PACKAGES),
    }


def exported(run: Run, base_model_name: str, *, task_type: str, prefix: str) -> LoraExport | None:
    """The adapters in PEFT's format beside the run's files; None while all are zero."""
    if not any(bool(layer.factors().norm() > 0) for _, layer in run.optimizer.layers):
        return None
    return export_lora(
        run.model,
        run.folder / LORA,
        prefix=prefix,
        base_model_name=base_model_name,
        task_type=task_type,
    )


def _optimizer(
    options: FinetuneOptions, model: nn.Module, groups: Sequence[dict[str, Any]]
) -> Optimizer:
    own: dict[str, Any] = {
        "rule": options.update_rule(),
        "conditioning": options.conditioning(),
        "inputs_every": options.inputs_every,
        "guard": Guard(rewinds=options.rewinds),
    }
    if options.rate_free:
        return Optimizer(model, control=RateFree(), **own)
    return Optimizer(
        model,
        lr=options.lr,
        weight_decay=options.weight_decay,
        groups=list(groups),
        **own,
    )
