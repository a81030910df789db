"""The job of `rankwise train`."""

import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rankwise.io.atomic import write_text
from rankwise.io.checkpoint import save
from rankwise.io.tensor_file import write_tensors
from rankwise.optim.guard import met
from rankwise.recipes.adversary import adversary
from rankwise.recipes.comparison import measured, score, table_of
from rankwise.recipes.folder import begin, finish, prepared
from rankwise.recipes.history import Line, Watcher
from rankwise.recipes.images import Images, read_images, rows_at
from rankwise.recipes.train_options import TrainOptions
from rankwise.recipes.training import RECORDS, Run, checkpoint_in, train
from rankwise.recipes.twins import DENSE, Twins, runs_of, twins_for
from rankwise.report.history import HISTORY
from rankwise.report.machine import peak_memory, versions
from rankwise.report.markdown import markdown
from rankwise.report.size import trained_parameters
from rankwise.report.train_figure import draw_training

MODEL, TABLE, FIGURE, LABELS = "model.safetensors", "table.md", "run.png", "labels.json"
TAIL = 30
PACKAGES = ("rankwise", "torch", "safetensors")


class Outcome(NamedTuple):
    """What a finished run leaves, beside its files."""

    metrics: dict[str, Any]
    histories: dict[str, list[Line]]
    folder: Path


def train_classifier(asked: TrainOptions, watcher: Watcher) -> Outcome:
    """Train as `asked`, or go on with the run in `asked.output`; writes the folder's files.

    Raises ValueError, TypeError, FileNotFoundError, ImportError or RuntimeError for what the user
    can mend, and Interrupted when asked to stop.
    """
    options = prepared(asked)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    watcher.say("loading data")
    data = read_images(options.data)
    twins = twins_for(options, data)
    runs = runs_of(twins, options, data)
    begin(options, (MODEL, TABLE, FIGURE, LABELS, DENSE, *RECORDS))
    histories = _train_all(runs, options, data, watcher)
    watcher.say("measuring")
    metrics = _metrics(options, runs, histories, twins, data)
    _write(options.output, metrics, histories, data)
    return Outcome(metrics, histories, options.output)


def _train_all(
    runs: dict[str, Run], options: TrainOptions, data: Images, watcher: Watcher
) -> dict[str, list[Line]]:
    """One network after the other, on the same batches; each goes on where it has a checkpoint."""
    histories: dict[str, list[Line]] = {}
    attacked = adversary(data, options.adversarial, options.adversarial_steps)
    watcher.expect(sum(run.steps for run in runs.values()))
    for name, run in runs.items():
        before = sum(map(len, histories.values()))
        device = next(run.model.parameters()).device

        def report(line: Line, before: int = before) -> None:
            watcher.step({**line, "step": line["step"] + before})

        def loss_at(step: int, run: Run = run, device: torch.device = device) -> Tensor:
            rows = rows_at(
                step, count=len(data.train), batch_size=options.batch_size, seed=options.seed
            )
            x, y = data.train[rows].to(device), data.labels[rows].to(device)
            return cross_entropy(run.model(attacked(run.model, x, y)), y)

        watcher.say(name.replace("_", " "))
        # A twin that was stopped before its first checkpoint starts anew.
        begun = options.resume and (not run.part or checkpoint_in(run.files) is not None)
        if not begun:
            run.files.mkdir(parents=True, exist_ok=True)
            (run.files / HISTORY).unlink(missing_ok=True)
        torch.manual_seed(options.seed)
        histories[name] = train(run, loss_at, report, resume=begun)
    return histories


def _metrics(
    options: TrainOptions,
    runs: dict[str, Run],
    histories: dict[str, list[Line]],
    twins: Twins,
    data: Images,
) -> dict[str, Any]:
    folder, optimizer, start = options.output, runs["low_rank"].optimizer, twins.start
    files = {"dense": folder / DENSE / MODEL, "low_rank": folder / MODEL}
    write_tensors(files["dense"], twins.dense.state_dict(), {})
    save(twins.low_rank, files["low_rank"])
    found = measured({"dense": twins.dense, "low_rank": twins.low_rank}, data, files)
    total, end = sum(p.numel() for p in twins.dense.parameters()), trained_parameters(optimizer)
    found["dense"] |= {"parameters": total, "factorised": start.weights}
    found["low_rank"] |= {"parameters": end, "factorised": end - (total - start.weights)}
    for name, run in runs.items():
        found[name] |= score(run.model, data)._asdict()
        found[name]["train_loss"] = statistics.fmean(x["loss"] for x in histories[name][-TAIL:])
        found[name]["seconds_per_step"] = statistics.median(x["seconds"] for x in histories[name])
    return found | {
        "removed": 1 - end / total,
        "ranks": {name: layer.rank for name, layer in optimizer.layers},
        "condition": histories["low_rank"][-1]["condition"],
        "start": start.ranks,
        "shapes": {name: list(shape) for name, shape in start.shapes.items()},
        "steps": runs["low_rank"].steps,
        "skipped_steps": optimizer.skipped,
        "incidents": met(optimizer.incidents),
        "peak_memory_bytes": peak_memory(),
        "seed": options.seed,
        "rank_rule": repr(optimizer.rank_rule),
        "control": repr(optimizer.control),
        "options": options.to_json(),
        "versions": versions(PACKAGES),
    }


def _write(
    folder: Path, metrics: dict[str, Any], histories: dict[str, list[Line]], data: Images
) -> None:
    """All files but `metrics.json` first: where that is, the run is complete."""
    write_text(folder / LABELS, json.dumps(list(data.classes)) + "\n")
    write_text(folder / TABLE, markdown(*table_of(metrics)))
    draw_training(metrics, histories, folder / FIGURE)
    finish(folder, metrics)
