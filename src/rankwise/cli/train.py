"""`rankwise train`: the job, with its progress and its table on the screen."""

from rankwise.cli.progress import progress
from rankwise.cli.report import hint
from rankwise.cli.table import comparison
from rankwise.recipes.alone import alone_in
from rankwise.recipes.comparison import table_of
from rankwise.recipes.folder import METRICS
from rankwise.recipes.history import Line
from rankwise.recipes.train import FIGURE, MODEL, TABLE, train_classifier
from rankwise.recipes.train_options import TrainOptions


def run_train(options: TrainOptions) -> None:
    """Train an image classifier in low rank, and print how it compares with its dense twin."""
    with alone_in(options.output), progress(_state) as (console, watcher):
        outcome = train_classifier(options, watcher)
    console.print(comparison(*table_of(outcome.metrics)))
    ranks = outcome.metrics["ranks"].values()
    console.print(
        f"{outcome.metrics['removed']:.1%} of the parameters removed; "
        f"ranks {', '.join(map(str, ranks))}"
    )
    files = ", ".join(str(outcome.folder / name) for name in (MODEL, FIGURE, TABLE, METRICS))
    console.print(f"written: {files}", soft_wrap=True)
    console.print(hint(outcome.folder), soft_wrap=True)


def _state(line: Line) -> str:
    return f"loss {line['loss']:.3f}  parameters {line['parameters']:,}"
