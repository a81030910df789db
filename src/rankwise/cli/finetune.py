"""`rankwise finetune`: the job, with its progress and its results on the screen."""

from typing import Any

from rankwise.cli.progress import progress
from rankwise.cli.report import hint
from rankwise.recipes.adapter_run import FIGURE, LORA, Outcome
from rankwise.recipes.alone import alone_in
from rankwise.recipes.finetune import HEAD, finetune
from rankwise.recipes.folder import METRICS
from rankwise.recipes.history import Line
from rankwise.recipes.options import FinetuneOptions
from rankwise.recipes.samples import SAMPLES

CELL = 160
"""Characters of a sample that the screen shows."""


def run_finetune(options: FinetuneOptions) -> None:
    """Fine-tune a pretrained model on texts, and print what came out."""
    with alone_in(options.output), progress(_state) as (console, watcher):
        outcome = finetune(options, watcher)
    if outcome.metrics.get("samples"):
        _print_samples(console, outcome.metrics["samples"])
    _print(console, outcome)


def _state(line: Line) -> str:
    return (
        f"loss {line['loss']:.3f}  mean rank {line['mean_rank']:.1f}  "
        f"parameters {line['parameters']:,}"
    )


def _print_samples(console: Any, samples: list[dict[str, str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_lines=True)
    for name in ("held-out prompt", "before", "after"):
        table.add_column(name, ratio=1)
    for sample in samples:
        prompt = sample["prompt"].strip()
        short = prompt if len(prompt) <= CELL else f"...{prompt[-CELL:]}"
        written = (sample[key].strip()[:CELL] or "(nothing)" for key in ("before", "after"))
        table.add_row(*map(_escaped, (short, *written)))
    console.print(table)


def _escaped(text: str) -> Any:
    from rich.text import Text

    return Text(text)


def _print(console: Any, outcome: Outcome) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    m, folder = outcome.metrics, outcome.folder
    ranks, size = list(m["ranks"].values()), m["parameters"]
    scores = _classifier_scores(m) if "accuracy" in m else _language_scores(m)
    facts = {
        **scores,
        "training loss": f"{m['train_loss']:.4f} (mean of the last steps)",
        "ranks": f"{min(ranks)} to {max(ranks)}, mean {sum(ranks) / len(ranks):.1f}",
        "adapter parameters": f"{size['start']:,} at the start, {size['end']:,} in the end, "
        f"{size['mean']:,.0f} on average",
        "seconds per step": f"{m['seconds_per_step']:.3f}",
        "peak memory": _mebibytes(m["peak_memory_bytes"]),
    }
    if m["skipped_steps"]:
        facts["skipped steps"] = f"{m['skipped_steps']} with a non-finite gradient"
    facts |= {f"incidents: {name}": str(count) for name, count in m["incidents"].items()}
    facts["results"] = f"{folder / METRICS}, {folder / FIGURE}"
    if m.get("samples"):
        facts["results"] += f", {folder / SAMPLES}"
    head = f", head in {folder / HEAD}" if "accuracy" in m else ""
    facts["adapter"] = f"{folder / 'adapter.safetensors'}{head}"
    facts["LoRA export"] = "nothing to export: the adapters are still zero"
    if outcome.export is not None:
        facts["LoRA export"] = f"{folder / LORA}\nfor {', '.join(outcome.export.consumers)}"
    table = Table(show_header=False, box=SIMPLE_HEAD, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    console.print(table, soft_wrap=True)
    console.print(hint(folder), soft_wrap=True)


def _classifier_scores(m: dict[str, Any]) -> dict[str, str]:
    return {
        "held-out accuracy": f"{m['accuracy']:.1%}",
        "held-out loss": f"{m['eval_loss']:.4f}",
    }


def _language_scores(m: dict[str, Any]) -> dict[str, str]:
    before, after, memory = m["eval_loss_before"], m["eval_loss"], m["memory"]
    loss = f"{before:.4f} before, {after:.4f} after"
    base = _mebibytes(memory["base_bytes"])
    if "quantised_to" in m:
        loss = f"{m['eval_loss_unquantised']:.4f} unquantised, {loss}"
        whole = _mebibytes(memory["base_bytes_unquantised"])
        base = f"{base}, {whole} before; {m['quantised_to']}"
    return {
        "held-out loss": f"{loss} (nats a token, {m['eval_tokens']:,} tokens)",
        "held-out perplexity": f"{m['eval_perplexity_before']:.2f} before, "
        f"{m['eval_perplexity']:.2f} after",
        "frozen model": base,
        "adapter, optimizer": f"{_mebibytes(memory['adapter_bytes'])}, "
        f"{_mebibytes(memory['optimizer_bytes'])}",
    }


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB" if size >= 2**24 else f"{size / 2**20:,.1f} MiB"
