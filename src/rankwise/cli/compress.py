"""`rankwise compress`: the job, with its progress and its table on the screen."""

from rankwise.cli.progress import progress
from rankwise.cli.report import hint
from rankwise.cli.table import comparison
from rankwise.recipes.alone import alone_in
from rankwise.recipes.compress import FIGURE, PLAIN, TABLE, compress
from rankwise.recipes.compress_options import CompressOptions
from rankwise.recipes.compress_table import table_of
from rankwise.recipes.folder import METRICS
from rankwise.recipes.history import Line


def run_compress(options: CompressOptions) -> None:
    """Make a trained model smaller, heal it, and print how it compares with its original."""
    with alone_in(options.output), progress(_state) as (console, watcher):
        outcome = compress(options, watcher)
    console.print(comparison(*table_of(outcome.metrics)))
    files = ", ".join(str(outcome.folder / name) for name in (FIGURE, TABLE, METRICS))
    console.print(f"written: {files}", soft_wrap=True)
    console.print(hint(outcome.folder), soft_wrap=True)
    console.print(f"plain PyTorch, with a card that says how to load it: {outcome.folder / PLAIN}")


def _state(line: Line) -> str:
    return f"loss {line['loss']:.4f}"
