"""`rankwise finetune`: the job, with its progress and its results on the screen."""

from typing import Any

from rankwise.cli.progress import progress
from rankwise.cli.report import hint
from rankwise.recipes.finetune import FIGURE, HEAD, LORA, Outcome, finetune
from rankwise.recipes.folder import METRICS
from rankwise.recipes.history import Line
from rankwise.recipes.options import FinetuneOptions


def run_finetune(options: FinetuneOptions) -> None:
    """Fine-tune and print what came out."""
    with progress(_state) as (console, watcher):
        watcher.expect(options.steps)
        outcome = finetune(options, watcher)
    _print(console, outcome)


def _state(line: Line) -> str:
    return (
        f"loss {line['loss']:.3f}  mean rank {line['mean_rank']:.1f}  "
        f"parameters {line['parameters']:,}"
    )


def _print(console: Any, outcome: Outcome) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    m, folder = outcome.metrics, outcome.folder
    ranks, size = list(m["ranks"].values()), m["parameters"]
    facts = {
        "held-out accuracy": f"{m['accuracy']:.1%}",
        "held-out loss": f"{m['eval_loss']:.4f}",
        "training loss": f"{m['train_loss']:.4f} (mean of the last steps)",
        "ranks": f"{min(ranks)} to {max(ranks)}, mean {sum(ranks) / len(ranks):.1f}",
        "adapter parameters": f"{size['start']:,} at the start, {size['end']:,} in the end, "
        f"{size['mean']:,.0f} on average",
        "seconds per step": f"{m['seconds_per_step']:.3f}",
        "peak memory": f"{m['peak_memory_bytes'] / 2**20:,.0f} MiB",
    }
    if m["skipped_steps"]:
        facts["skipped steps"] = f"{m['skipped_steps']} with a non-finite gradient"
    facts["results"] = f"{folder / METRICS}, {folder / FIGURE}"
    facts["adapter"] = f"{folder / 'adapter.safetensors'}, head in {folder / HEAD}"
    facts["LoRA export"] = "nothing to export: the adapters are still zero"
    if outcome.export is not None:
        facts["LoRA export"] = f"{folder / LORA}\nfor {', '.join(outcome.export.consumers)}"
    table = Table(show_header=False, box=SIMPLE_HEAD, pad_edge=False)
    for name, value in facts.items():
        table.add_row(name, value)
    console.print(table, soft_wrap=True)
    console.print(hint(folder), soft_wrap=True)
