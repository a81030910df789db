"""The job of `rankwise finetune`."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankwise.io.adapter_file import FILE_NAME
from rankwise.io.atomic import write_text
from rankwise.io.checkpoint import save
from rankwise.io.export_lora import LoraExport
from rankwise.io.tensor_file import write_tensors
from rankwise.recipes.adapter_run import (
    FIGURE,
    LORA,
    Outcome,
    adapter_run,
    exported,
    run_metrics,
)
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
from rankwise.recipes.folder import begin, finish, prepared
from rankwise.recipes.history import Line, Watcher
from rankwise.recipes.hub import hub_dataset
from rankwise.recipes.language_job import finetune_language
from rankwise.recipes.options import FinetuneOptions
from rankwise.recipes.tables import read_dataset
from rankwise.recipes.task import task_of
from rankwise.recipes.training import RECORDS, Run, train
from rankwise.report.figure import draw_run
from rankwise.surgery.adapt import adapt_

HEAD, LABELS = "head.safetensors", "labels.json"


def finetune(asked: FinetuneOptions, watcher: Watcher) -> Outcome:
    """Fine-tune as `asked`, or go on with the run in `asked.output`; writes the folder's files.

    Raises ValueError, FileNotFoundError, ImportError or RuntimeError for what the user can mend,
    and Interrupted when asked to stop.
    """
    options = prepared(asked)
    options = options.for_task(task_of(options))
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    watcher.expect(options.total_steps)
    if options.task == "language":
        return finetune_language(options, watcher)
    return _finetune_classifier(options, watcher)


def _finetune_classifier(options: FinetuneOptions, watcher: Watcher) -> Outcome:
    watcher.tell(f"{options.data or 'movie reviews'}: labelled texts, which train a classifier")
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
    begin(options, (FIGURE, HEAD, LABELS, LORA, FILE_NAME, *RECORDS))

    def loss_at(step: int) -> Tensor:
        chosen = batch_at(step, count=len(data.train), batch_size=options.rows, seed=options.seed)
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
    text = json.dumps([data.classes, data.train, data.held_out])
    return adapter_run(
        options,
        pretrained.model,
        {"data": hashlib.sha256(text.encode()).hexdigest()},
        groups=() if options.rate_free else [{"params": "head", "lr": options.head_lr}],
    )


def _metrics(
    options: FinetuneOptions, run: Run, history: list[Line], after: Score
) -> dict[str, Any]:
    return {
        "accuracy": after.accuracy,
        "eval_loss": after.loss,
        **run_metrics(options, run, history, prefix="encoder."),
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
    name = options.model or "sentence-transformers/all-MiniLM-L6-v2"
    export = exported(run, name, task_type="FEATURE_EXTRACTION", prefix="encoder")
    draw_run(metrics, history, folder / FIGURE)
    finish(folder, metrics)
    return export
