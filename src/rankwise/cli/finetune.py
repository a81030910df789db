"""`rankwise finetune`: the job, with its progress and its results on the screen."""

from typing import Any

from rankwise.recipes.finetune import FIGURE, HEAD, LORA, METRICS, Outcome, Watcher, finetune
from rankwise.recipes.options import FinetuneOptions

INSTALL = 'pip install "rankwise[finetune]"'


def run_finetune(options: FinetuneOptions) -> None:
    """Fine-tune and print what came out."""
    try:
        from rich.console import Console
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(f"progress and tables need rich and tqdm: {INSTALL}") from error
    console = Console(highlight=False)
    with tqdm(total=options.steps, unit="step", disable=None, leave=False) as bar:
        # Where there is no terminal to draw a bar on, every tenth of the way is a line.
        stride = max(1, options.steps // 10)

        def step(line: dict[str, Any]) -> None:
            state = (
                f"loss {line['loss']:.3f}  mean rank {line['mean_rank']:.1f}  "
                f"parameters {line['parameters']:,}"
            )
            if bar.disable and line["step"] % stride == 0:
                console.print(f"step {line['step']}  {state}")
            bar.update(line["step"] - bar.n)
            bar.set_postfix_str(state)

        def say(message: str) -> None:
            bar.set_description(message) if not bar.disable else console.print(message)

        outcome = finetune(options, Watcher(say=say, step=step))
    _print(console, outcome)


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
