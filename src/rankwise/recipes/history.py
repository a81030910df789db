"""Who is told how a run goes."""

from collections.abc import Callable
from typing import NamedTuple

from rankwise.report.history import Line as Line


class Watcher(NamedTuple):
    """Who is told how a run goes."""

    say: Callable[[str], None]
    step: Callable[[Line], None]
    expect: Callable[[int], None] = lambda steps: None
    """How many steps there are, once that is known."""
    tell: Callable[[str], None] = lambda message: None
    """What is worth a line that stays."""
