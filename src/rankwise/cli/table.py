"""A comparison on the screen."""

from collections.abc import Sequence
from typing import Any


def comparison(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    """A table of rich's: names on the left, numbers flush right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(header[0], box=SIMPLE_HEAD, pad_edge=False)
    for name in header[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table
