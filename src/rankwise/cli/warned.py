"""Warnings on the command line: one line each, without the place in the program."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def on_one_line() -> Iterator[None]:
    """Within, a warning is what it says."""
    with warnings.catch_warnings():
        warnings.showwarning = _show
        yield


def _show(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"rankwise: warning: {' '.join(str(message).split())}", file=sys.stderr)
