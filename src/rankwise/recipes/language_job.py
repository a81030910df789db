"""The job of `rankwise finetune` on data for a language model."""

import math
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankwise.io.adapter_file import FILE_NAME
from rankwise.io.atomic import write_text
from rankwise.io.checkpoint import save
from rankwise.recipes.adapter_run import (
    FIGURE,
    LORA,
    PACKAGES,
    Outcome,
    adapter_run,
    exported,
    run_metrics,
)
from rankwise.recipes.classifier import block_maps
from rankwise.recipes.examples import batch_at
from rankwise.recipes.folder import begin, finish
from rankwise.recipes.history import Line, Watcher
from rankwise.recipes.language import (
    Loss,
    Sample,
    evaluate,
    load_causal,
    longest,
    loss_of,
    samples,
)
from rankwise.recipes.language_data import LanguageData, language_data
from rankwise.recipes.memory import adapter_bytes, model_bytes, optimizer_bytes
from rankwise.recipes.options import FinetuneOptions
from rankwise.recipes.packing import check_apart
from rankwise.recipes.quantise import quantise_
from rankwise.recipes.samples import SAMPLES, sample_table, samples_page
from rankwise.recipes.smollm2 import NAME, smollm2_folder
from rankwise.recipes.training import RECORDS, Run, train
from rankwise.report.figure import draw_run
from rankwise.report.machine import versions
from rankwise.surgery.adapt import adapt_


class Base(NamedTuple):
    """The frozen model as training finds it."""

    model: Any
    tokenizer: Any
    name: str
    """Folder or hub name."""
    maps: list[str]
    facts: dict[str, Any]
    """Of its memory, and of what quantisation did to it."""


class Measured(NamedTuple):
    """A model's loss on held-out rows, and what it writes."""

    loss: Loss
    samples: list[Sample]


def finetune_language(options: FinetuneOptions, watcher: Watcher) -> Outcome:
    """As `finetune`, which calls it."""
    watcher.say("loading model and data")
    source = options.model or str(smollm2_folder())
    model, tokenizer = load_causal(source)
    length = _length(options, model)
    data = language_data(options, tokenizer, length)
    _announce(options, data, length, watcher)
    base = _base(options, source, model, tokenizer, data, watcher)
    watcher.say(f"measuring {len(data.held_out)} held-out rows")
    before = _measured(options, base, data, length)
    if options.sample_tokens and not before.samples:
        watcher.tell("no samples: no held-out prompt leaves room for one")
    adapt_(
        model,
        rank=options.rank,
        select=list(options.select) or base.maps,
        scale=options.scale,
        seed=options.seed,
    )
    model.to(_device())
    if options.checkpointing:
        _keep_few_activations(model)
    run = adapter_run(options, model, {"data": data.fingerprint()})
    begin(options, (FIGURE, SAMPLES, LORA, FILE_NAME, *RECORDS))

    def loss_at(step: int) -> Tensor:
        chosen = batch_at(step, count=len(data.train), batch_size=options.rows, seed=options.seed)
        with _precision(options):
            return loss_of(model, [data.train[i] for i in chosen])

    torch.manual_seed(options.seed)
    history = train(run, loss_at, watcher.step, resume=options.resume)
    watcher.say(f"measuring {len(data.held_out)} held-out rows")
    after = _measured(options, base, data, length)
    metrics = _metrics(options, run, base, data, (before, after), history)
    return _write(options, run, base, metrics, history)


def _length(options: FinetuneOptions, model: Any) -> int:
    most = longest(model)
    if most is None or options.length <= most:
        return options.length
    if options.max_length is not None:
        raise ValueError(
            f"--max-length {options.max_length} is beyond the model's {most} positions"
        )
    return most


def _announce(options: FinetuneOptions, data: LanguageData, length: int, watcher: Watcher) -> None:
    f = data.facts
    watcher.tell(
        f"{options.data}: {data.form}, which train a language model; {options.model or NAME}"
    )
    watcher.tell(
        f"{f['examples']:,} examples of {f['tokens']:,} tokens, {f['counted_tokens']:,} of them "
        f"counted, in {f['rows']:,} rows of at most {length}; {f['held_out_examples']:,} examples "
        f"held out in {f['held_out_rows']:,} rows"
    )
    if f["cut_examples"] or f["left_out_examples"]:
        watcher.tell(
            f"{f['cut_examples']:,} examples are longer than --max-length {length} and cut, "
            f"{f['left_out_examples']:,} left out, as nothing that counts is left of them"
        )


def _base(
    options: FinetuneOptions,
    source: str,
    model: Any,
    tokenizer: Any,
    data: LanguageData,
    watcher: Watcher,
) -> Base:
    maps = block_maps(model)
    facts: dict[str, Any] = {"base_bytes": model_bytes(model)}
    if options.quantize is not None:
        watcher.say("measuring the model before it is quantised")
        with _precision(options):
            facts["eval_loss_unquantised"] = evaluate(model.to(_device()), data.held_out).mean
        watcher.say(f"quantising {len(maps)} layers")
        facts["base_bytes_unquantised"] = facts["base_bytes"]
        facts["quantised_to"] = quantise_(model.cpu(), maps, options.quantize, _device())
        facts["base_bytes"] = model_bytes(model)
    model.to(_device())
    check_apart(model, [*data.train, *data.held_out])
    return Base(model, tokenizer, source, maps, facts)


def _measured(options: FinetuneOptions, base: Base, data: LanguageData, length: int) -> Measured:
    most = longest(base.model)
    room = length if most is None else min(length, most - options.sample_tokens)
    with _precision(options):
        loss = evaluate(base.model, data.held_out)
        written = samples(
            base.model,
            base.tokenizer,
            data.questions,
            longest=room,
            tokens=options.sample_tokens,
        )
    return Measured(loss, written)


def _metrics(
    options: FinetuneOptions,
    run: Run,
    base: Base,
    data: LanguageData,
    measured: tuple[Measured, Measured],
    history: list[Line],
) -> dict[str, Any]:
    before, after = measured
    facts = dict(base.facts)
    memory = {name: facts.pop(name) for name in list(facts) if name.startswith("base_bytes")}
    memory |= {
        "adapter_bytes": adapter_bytes(run.optimizer.layers),
        "optimizer_bytes": optimizer_bytes(run.optimizer),
    }
    return {
        "eval_loss": after.loss.mean,
        "eval_loss_before": before.loss.mean,
        **facts,
        "eval_perplexity": math.exp(after.loss.mean),
        "eval_perplexity_before": math.exp(before.loss.mean),
        "eval_tokens": after.loss.tokens,
        "data": {"form": data.form, **data.facts},
        "memory": memory,
        "samples": sample_table(before.samples, after.samples),
        **run_metrics(options, run, history),
        "versions": versions((*PACKAGES, "bitsandbytes")),
    }


def _write(
    options: FinetuneOptions, run: Run, base: Base, metrics: dict[str, Any], history: list[Line]
) -> Outcome:
    """All files but `metrics.json` first: where that is, the run is complete."""
    folder = options.output
    save(run.model, folder)
    export = exported(run, base.name, task_type="CAUSAL_LM", prefix="")
    if metrics["samples"]:
        write_text(folder / SAMPLES, samples_page(metrics["samples"]))
    draw_run(metrics, history, folder / FIGURE)
    finish(folder, metrics)
    return Outcome(metrics, history, export, folder)


def _keep_few_activations(model: Any) -> None:
    # Renamed in the course of transformers 5.
    older = "gradient_checkpointing_enable"
    newer = "activation_checkpointing_enable"
    getattr(model, newer if hasattr(model, newer) else older)({"use_reentrant": False})


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _precision(options: FinetuneOptions) -> AbstractContextManager[Any]:
    return torch.autocast(_device(), torch.bfloat16, enabled=options.bfloat16)
