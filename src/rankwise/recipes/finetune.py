"""The job of `rankwise finetune`."""

import hashlib
import json
import shutil
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from rankwise.io.adapter_file import FILE_NAME
from rankwise.io.atomic import write_tensors, write_text
from rankwise.io.checkpoint import save
from rankwise.io.export_lora import LoraExport, export_lora
from rankwise.optim.optimizer import Optimizer
from rankwise.optim.rate_free import RateFree
from rankwise.recipes.builtin import minilm_folder, movie_reviews
from rankwise.recipes.classifier import (
    Pretrained,
    Score,
    block_maps,
    encode,
    evaluate,
    loss_of,
    pretrained_classifier,
)
from rankwise.recipes.examples import Dataset, batch_at
from rankwise.recipes.folder import METRICS, begin, prepared
from rankwise.recipes.history import Line, Watcher
from rankwise.recipes.hub import hub_dataset
from rankwise.recipes.options import FinetuneOptions
from rankwise.recipes.ranks import chosen_rank_rule
from rankwise.recipes.tables import read_dataset
from rankwise.recipes.training import (
    CHECKPOINT,
    Run,
    train,
    warm_up_and_decay,
)
from rankwise.report.figure import draw_run
from rankwise.report.history import HISTORY
from rankwise.report.machine import peak_memory, versions
from rankwise.report.recorder import RUN
from rankwise.surgery.adapt import adapt_

FIGURE = "ranks.png"
LORA, HEAD, LABELS = "lora", "head.safetensors", "labels.json"
TAIL = 30
PACKAGES = ("rankwise", "torch", "safetensors", "transformers", "tokenizers")


class Outcome(NamedTuple):
    """What a finished run leaves, beside its files."""

    metrics: dict[str, Any]
    history: list[Line]
    export: LoraExport | None
    folder: Path


def finetune(asked: FinetuneOptions, watcher: Watcher) -> Outcome:
    """Fine-tune as `asked`, or go on with the run in `asked.output`; writes the folder's files.

    Raises ValueError, FileNotFoundError, ImportError or RuntimeError for what the user can mend,
    and Interrupted when asked to stop.
    """
    options = prepared(asked)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    watcher.say("loading data and model")
    data = _dataset(options)
    pretrained = pretrained_classifier(
        options.model or minilm_folder(), len(data.classes), options.seed
    )
    model, tokenizer = pretrained
    select = [f"encoder.{name}" for name in block_maps(model.encoder)]
    adapt_(
        model,
        rank=options.rank,
        select=list(options.select) or select,
        exclude="head",
        train="head",
        scale=options.scale,
        seed=options.seed,
    )
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    run = _run(options, pretrained, data)
    if not options.resume:
        shutil.rmtree(options.output / LORA, ignore_errors=True)
        begin(options, (FIGURE, HEAD, LABELS, CHECKPOINT, HISTORY, RUN, FILE_NAME))

    def loss_at(step: int) -> Tensor:
        chosen = batch_at(
            step, count=len(data.train), batch_size=options.batch_size, seed=options.seed
        )
        batch = encode(tokenizer, [data.train[i] for i in chosen], options.length)
        return loss_of(model, batch)

    torch.manual_seed(options.seed)
    history = train(run, loss_at, watcher.step, resume=options.resume)
    watcher.say(f"scoring {len(data.held_out)} held-out rows")
    after = evaluate(model, tokenizer, data.held_out, options.length)
    metrics = _metrics(options, run, history, after)
    export = _write(options, run, data, metrics, history)
    return Outcome(metrics, history, export, options.output)


def _dataset(options: FinetuneOptions) -> Dataset:
    if options.data is None:
        return movie_reviews(options.seed)
    columns = {"text_column": options.text_column, "label_column": options.label_column}
    held_out = {"eval_fraction": options.eval_fraction, "seed": options.seed}
    path = Path(options.data)
    if path.suffix or path.exists():
        return read_dataset(path, **columns, **held_out, eval_path=options.eval_data)  # type: ignore[arg-type]
    return hub_dataset(options.data, **columns, **held_out)  # type: ignore[arg-type]


def _run(options: FinetuneOptions, pretrained: Pretrained, data: Dataset) -> Run:
    model = pretrained.model
    optimizer = _optimizer(options, model)
    optimizer.rank_rule = chosen_rank_rule(options, optimizer.layers)
    text = json.dumps([data.classes, data.train, data.held_out])
    return Run(
        model=model,
        optimizer=optimizer,
        scheduler=LambdaLR(optimizer, warm_up_and_decay(options.steps)),
        folder=options.output,
        steps=options.steps,
        save_every=options.save_every,
        identity={"data": hashlib.sha256(text.encode()).hexdigest()},
    )


def _optimizer(options: FinetuneOptions, model: nn.Module) -> Optimizer:
    rule, conditioning = options.update_rule(), options.conditioning()
    if options.rate_free:
        return Optimizer(model, rule=rule, control=RateFree(), conditioning=conditioning)
    return Optimizer(
        model,
        lr=options.lr,
        rule=rule,
        conditioning=conditioning,
        weight_decay=options.weight_decay,
        groups=[{"params": "head", "lr": options.head_lr}],
    )


def _metrics(
    options: FinetuneOptions, run: Run, history: list[Line], after: Score
) -> dict[str, Any]:
    tail = [line["loss"] for line in history[-TAIL:]]
    sizes = [line["parameters"] for line in history]
    layers = run.optimizer.layers
    initial = sum(min(options.rank, *layer.shape) * (sum(layer.shape) + 1) for _, layer in layers)
    return {
        "accuracy": after.accuracy,
        "train_loss": statistics.fmean(tail),
        "eval_loss": after.loss,
        "ranks": {name.removeprefix("encoder."): layer.rank for name, layer in layers},
        "parameters": {"start": initial, "end": sizes[-1], "mean": statistics.fmean(sizes)},
        "seconds_per_step": statistics.median(line["seconds"] for line in history),
        "peak_memory_bytes": peak_memory(),
        "steps": run.optimizer.steps,
        "skipped_steps": run.optimizer.skipped,
        "seed": options.seed,
        "options": options.to_json(),
        "rank_rule": repr(run.optimizer.rank_rule),
        "rule": repr(run.optimizer.rule),
        "control": repr(run.optimizer.control),
        "versions": versions(PACKAGES),
    }


def _write(
    options: FinetuneOptions,
    run: Run,
    data: Dataset,
    metrics: dict[str, Any],
    history: list[Line],
) -> LoraExport | None:
    """All files but `metrics.json` first: where that is, the run is complete."""
    folder, model = options.output, run.model
    save(model, folder)
    head = {name: t for name, t in model.state_dict().items() if name.startswith("head.")}
    write_tensors(folder / HEAD, head, {})
    write_text(folder / LABELS, json.dumps(list(data.classes)) + "\n")
    export = None
    if any(bool(layer.factors().norm() > 0) for _, layer in run.optimizer.layers):
        name = options.model or "sentence-transformers/all-MiniLM-L6-v2"
        export = export_lora(
            model, folder / LORA, prefix="encoder", base_model_name=name,
            task_type="FEATURE_EXTRACTION",
        )  # fmt: skip
    draw_run(metrics, history, folder / FIGURE)
    write_text(folder / METRICS, json.dumps(metrics, indent=2) + "\n")
    return export
