"""What a run took, and what it ran on."""

import resource
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import torch


def peak_memory() -> int:
    """Of the device if there is one, else of the process; bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of Python and of those of the packages that are installed."""
    found = {"python": sys.version.split()[0]}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
