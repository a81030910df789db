"""A bar on a terminal, lines elsewhere."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rankwise.recipes.history import Line, Watcher

INSTALL = 'pip install "rankwise[finetune]"'
LINES = 10


@contextmanager
def progress(state_of: Callable[[Line], str]) -> Iterator[tuple[Any, Watcher]]:
    """A console, and a watcher that shows `state_of` each step.

    Where there is no terminal to draw a bar on, every tenth of the way is a line, and messages that
    differ by a number are told once.
    """
    try:
        from rich.console import Console
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(f"progress and tables need rich and tqdm: {INSTALL}") from error
    console = Console(highlight=False)
    with tqdm(total=0, unit="step", disable=None, leave=False) as bar:

        def expect(steps: int) -> None:
            bar.total = steps

        def step(line: Line) -> None:
            state = state_of(line)
            if bar.disable and line["step"] % max(1, (bar.total or 0) // LINES) == 0:
                console.print(f"step {line['step']}  {state}")
            bar.update(line["step"] - bar.n)
            bar.set_postfix_str(state)

        said = ""

        def say(message: str) -> None:
            nonlocal said
            if not bar.disable:
                bar.set_description(message)
            elif _kind(message) != said:
                console.print(message)
            said = _kind(message)

        def tell(message: str) -> None:
            with bar.external_write_mode():
                console.print(message, markup=False, soft_wrap=True)

        yield console, Watcher(say, step, expect, tell)


def _kind(message: str) -> str:
    return re.sub(r"\d+", "", message)
