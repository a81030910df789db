"""`rankwise convert`: the job, and its table on the screen."""

from pathlib import Path

from rankwise.cli.table import comparison
from rankwise.compress.truncation import HEADER
from rankwise.recipes.convert import Outcome, convert
from rankwise.recipes.convert_options import (
    DEFAULT_OUTPUT,
    DEFAULT_SOURCE,
    ConvertOptions,
    ConvertSettings,
)

INSTALL = 'pip install "rankwise[finetune]"'


def run_convert(
    source: Path = DEFAULT_SOURCE, output: Path = DEFAULT_OUTPUT, /, *, settings: ConvertSettings
) -> None:
    """Make an adapter smaller or another format, and print ranks, errors and sizes.

    Args:
        source: A LoRA folder of PEFT's, or an adapter of rankwise's (file or folder).
        output: A new folder for a LoRA, or a file in .safetensors for an adapter of rankwise's.
    """
    try:
        from rich.console import Console
    except ImportError as error:
        raise ImportError(f"tables need rich: {INSTALL}") from error
    console = Console(highlight=False)
    with console.status("reading"):
        outcome = convert(ConvertOptions(**vars(settings), source=source, output=output))
    console.print(comparison(HEADER, outcome.cut.rows()))
    for line in _told(outcome):
        console.print(line, soft_wrap=True)


def _told(outcome: Outcome) -> list[str]:
    m = outcome.metrics
    before, after = m["parameters"].values()
    lines = [
        f"parameters in factors: {before:,} to {after:,}; relative error of all together "
        f"{m['relative_error']:.1e}",
        f"bytes: {m['bytes']['before']:,} to {m['bytes']['after']:,}",
    ]
    if m["zero"]:
        lines.append(f"left out, zero: {', '.join(m['zero'])}")
    if m["left_out"]:
        reason = "trained, but no LoRA" if m["to"] == "peft" else "weights of the base model"
        lines.append(f"left out, {reason}: {', '.join(m['left_out'])}")
    lines.append(f"readable by: {', '.join(m['consumers'])}")
    lines.append(f"written: {', '.join(map(str, outcome.files))}")
    return lines
