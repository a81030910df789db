"""`rankwise study`: integrators side by side, as a table and a picture."""

from rankwise.recipes.folder import METRICS
from rankwise.recipes.study import FIGURE, TABLE, StudyOptions, study, table_of

INSTALL = 'pip install "rankwise[finetune]"'


def run_study(options: StudyOptions) -> None:
    """Compare integrators on small problems, and print a table."""
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
    except ImportError as error:
        raise ImportError(f"tables need rich: {INSTALL}") from error
    console = Console(highlight=False)
    with console.status("starting") as status:
        traces = study(options, status.update)
    header, rows = table_of(traces)
    table = Table(*header, box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    files = ", ".join(str(options.output / name) for name in (FIGURE, TABLE, METRICS))
    console.print(f"written: {files}", soft_wrap=True)
