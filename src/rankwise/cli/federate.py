"""`rankwise federate`: the job, with its progress and its table on the screen."""

from rankwise.cli.progress import progress
from rankwise.cli.table import comparison
from rankwise.recipes.alone import alone_in
from rankwise.recipes.federate import FIGURE, TABLE, federate
from rankwise.recipes.federate_options import FederateOptions
from rankwise.recipes.federate_table import table_of
from rankwise.recipes.folder import METRICS
from rankwise.recipes.history import Line


def run_federate(options: FederateOptions) -> None:
    """Train on the data of many clients in low rank, and print how it compares with FedAvg."""
    with alone_in(options.output), progress(_state) as (console, watcher):
        outcome = federate(options, watcher)
    console.print(comparison(*table_of(outcome.metrics)))
    files = ", ".join(str(outcome.folder / name) for name in (FIGURE, TABLE, METRICS))
    console.print(f"written: {files}", soft_wrap=True)


def _state(line: Line) -> str:
    told = f"round {line['round']}  accuracy {line['accuracy']:.2%}"
    if line["ranks"]:
        told += f"  ranks {' '.join(map(str, line['ranks'].values()))}"
    if not line["answered"]:
        return f"{told}  void: no sound answer"
    missing = line["participants"] - line["answered"]
    return f"{told}  without {missing} of {line['participants']} clients" if missing else told
