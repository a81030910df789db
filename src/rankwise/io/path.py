"""Paths that were given as arguments."""

import os
from pathlib import Path
from typing import Any


def given_path(value: Any, argument: str = "folder") -> Path:
    """The path; TypeError, naming the argument, for what is none."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"`{argument}` must be a path, got {type(value).__name__}")
    return Path(value)
