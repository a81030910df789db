"""The job of `rankwise compress`."""

import copy
import hashlib
import json
import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR

from rankwise.io.atomic import write_text
from rankwise.io.card import Card, Measurement
from rankwise.io.checkpoint import load, save
from rankwise.io.json_object import read_object
from rankwise.io.plain import save_plain
from rankwise.nn.low_rank import low_rank_layers
from rankwise.optim.guard import Guard
from rankwise.optim.optimizer import Optimizer
from rankwise.recipes.comparison import flops, latencies
from rankwise.recipes.compress_options import CompressOptions
from rankwise.recipes.compress_table import table_of
from rankwise.recipes.cuts import Cut, make_cut
from rankwise.recipes.examples import batch_at
from rankwise.recipes.folder import OPTIONS, begin, finish, prepared
from rankwise.recipes.history import Line, Watcher
from rankwise.recipes.subject import Subject, healing_loss
from rankwise.recipes.subjects import subject_for
from rankwise.recipes.sums import check_sum, write_sums
from rankwise.recipes.training import RECORDS, Run, checkpoint_in, train, warm_up_and_decay
from rankwise.report.compression_figure import draw_compression
from rankwise.report.history import HISTORY
from rankwise.report.machine import peak_memory, versions
from rankwise.report.markdown import markdown
from rankwise.surgery.factorize import factorize_, plan_factorize
from rankwise.surgery.init import Random
from rankwise.surgery.places import call
from rankwise.surgery.shrink import shrink

CUT, FACTORS = "cut.json", "factors.safetensors"
PLAIN, TABLE, FIGURE, PLAN = "plain", "table.md", "compression.png", "plan.txt"
BATCHES = (1, 32)
TAIL = 30
PACKAGES = ("rankwise", "torch", "safetensors", "transformers")


class Outcome(NamedTuple):
    """What a finished run leaves, beside its files."""

    metrics: dict[str, Any]
    history: list[Line]
    folder: Path


def compress(asked: CompressOptions, watcher: Watcher) -> Outcome:
    """Compress as `asked`, or go on with the run in `asked.output`; writes the folder's files.

    Raises ValueError, TypeError, FileNotFoundError, ImportError or RuntimeError for what the user
    can mend, and Interrupted when asked to stop.
    """
    options = prepared(asked)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    watcher.say("loading model and data")
    subject = subject_for(options)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    original = subject.model.to(device)
    begin(options, (CUT, FACTORS, TABLE, FIGURE, PLAN, *RECORDS))
    cut, model = _cut_model(subject, original, options, watcher)
    history = _heal(subject, original, model, options, watcher)
    watcher.say("measuring")
    small = shrink(model).cpu().eval()
    planned = plan_factorize(original.cpu(), rank=cut.ranks, example=subject.example(1))
    write_text(options.output / PLAN, f"{planned}\n")
    metrics = _metrics(options, subject, original, small, cut, history)
    _write(options, subject, small, metrics, cut, history)
    return Outcome(metrics, history, options.output)


def _cut_model(
    subject: Subject, original: nn.Module, options: CompressOptions, watcher: Watcher
) -> tuple[Cut, nn.Module]:
    """The cut, made or read, and a low-rank copy of the model as it stands before healing."""
    file, factors = options.output / CUT, options.output / FACTORS
    model = copy.deepcopy(original)
    if options.resume and file.exists():
        check_sum(options.output, CUT)
        cut = _read_cut(file)
        if cut.weights != fingerprint(original):
            raise ValueError(f"{file}: the run was started with other weights of the model")
        factorize_(model, rank=cut.ranks, init=Random())
        _choose_trained_(model)
        load(model, factors)
        return cut, model
    cut, init = make_cut(subject, original, options, watcher)
    factorize_(model, rank=cut.ranks, init=init)
    _choose_trained_(model)
    cut = cut._replace(measured=subject.measure(model), weights=fingerprint(original))
    save(model, factors)
    write_text(file, json.dumps(cut.to_json()) + "\n")
    write_sums(options.output, [OPTIONS, CUT])
    return cut, model


def _read_cut(file: Path) -> Cut:
    values = read_object(file, "cut")
    try:
        return Cut.from_json(values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged: {type(error).__name__}: {error}") from error


def fingerprint(model: nn.Module) -> str:
    """Differs for different parameters or buffers."""
    digest = hashlib.sha256()
    for name, t in model.state_dict().items():
        digest.update(name.encode())
        digest.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _choose_trained_(model: nn.Module) -> None:
    """Factors heal, and with them biases and norms, which have one dimension; no whole weight."""
    model.requires_grad_(False)
    for p in model.parameters():
        p.requires_grad_(p.ndim == 1)
    for layer in low_rank_layers(model).values():
        for p in layer.factor_parameters():
            p.requires_grad_(True)


def _enter_healing(model: nn.Module) -> None:
    """No dropout, for the original has none either; batch norms learn new statistics."""
    model.eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train()


def _heal(
    subject: Subject,
    original: nn.Module,
    model: nn.Module,
    options: CompressOptions,
    watcher: Watcher,
) -> list[Line]:
    if options.heal_steps == 0:
        return []
    weight = subject.distill if options.distill is None else options.distill
    # Second moments of the first few batches are rough: no step is longer than the rate says.
    guard = Guard(rewinds=options.rewinds)
    optimizer = Optimizer(model, lr=options.lr, max_step=options.lr, guard=guard)
    run = Run(
        model=model,
        optimizer=optimizer,
        scheduler=LambdaLR(optimizer, warm_up_and_decay(options.heal_steps)),
        folder=options.output,
        steps=options.heal_steps,
        save_every=options.save_every,
        keep=options.keep_checkpoints,
        identity={"data": subject.fingerprint()},
        enter=_enter_healing,
    )

    def loss_at(step: int) -> Tensor:
        rows = batch_at(step, count=subject.rows, batch_size=options.batch_size, seed=options.seed)
        return healing_loss(subject, model, original, subject.batch(rows), weight)

    watcher.say("healing")
    watcher.expect(options.heal_steps)
    # A run that was stopped before its first checkpoint starts to heal anew.
    begun = options.resume and checkpoint_in(options.output) is not None
    if not begun:
        (options.output / HISTORY).unlink(missing_ok=True)
    torch.manual_seed(options.seed)
    original.requires_grad_(False).eval()
    return train(run, loss_at, watcher.step, resume=begun)


def _metrics(
    options: CompressOptions,
    subject: Subject,
    original: nn.Module,
    small: nn.Module,
    cut: Cut,
    history: list[Line],
) -> dict[str, Any]:
    models = {"before": original, "after": small}
    times = {
        rows: latencies([partial(call, m, subject.example(rows)) for m in models.values()])
        for rows in BATCHES
    }
    found: dict[str, Any] = {
        name: {
            "parameters": sum(p.numel() for p in model.parameters()),
            "flops": flops(model, subject.example(1)),
            "bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
            "latency": {str(rows): times[rows][i] for rows in BATCHES},
        }
        for i, (name, model) in enumerate(models.items())
    }
    found["before"] |= cut.original
    found["cut"] = cut.measured
    found["after"] |= subject.measure(small)
    return found | {
        "subject": subject.name,
        "keep": cut.keep,
        "ranks": cut.ranks,
        "curve": cut.curve,
        "heal_loss": _tail_mean(history),
        "heal_seconds": sum(line["seconds"] for line in history),
        "steps": len(history),
        "incidents": next((x["incidents"] for x in history[::-1] if "incidents" in x), {}),
        "peak_memory_bytes": peak_memory(),
        "seed": options.seed,
        "options": options.to_json(),
        "versions": versions(PACKAGES),
    }


def _tail_mean(history: list[Line]) -> float | None:
    return statistics.fmean(line["loss"] for line in history[-TAIL:]) if history else None


def _write(
    options: CompressOptions,
    subject: Subject,
    small: nn.Module,
    metrics: dict[str, Any],
    cut: Cut,
    history: list[Line],
) -> None:
    """All files but `metrics.json` first: where that is, the run is complete."""
    folder = options.output
    table = markdown(*table_of(metrics))
    card = _card(subject, metrics, table)
    save_plain(subject.inner(small), folder / PLAIN, card=card)
    subject.save_beside(folder / PLAIN)
    write_text(folder / TABLE, table)
    draw_compression(metrics, cut.spectra, cut.shapes, folder / FIGURE)
    finish(folder, metrics)


def _card(subject: Subject, metrics: Mapping[str, Any], table: str) -> Card:
    measured = [
        Measurement(name, round(before, 4), round(metrics["after"][name], 4), "held-out rows")
        for name, before in metrics["before"].items()
        if isinstance(before, float)
    ]
    cut = "truncated SVD" if metrics["options"]["plain"] else "an SVD in the metric of the loss"
    text = (
        f"Made by `rankwise compress`: every layer cut by {cut}, {metrics['keep']:.0%} of the "
        f"weights of the layers in question kept, then healed in {metrics['steps']} steps."
    )
    return Card(f"{subject.name}, compressed", subject.name, f"{text}\n\n{table}", measured)
