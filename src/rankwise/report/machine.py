"""What a run took, and what it ran on."""

import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PAGES = Path("/proc/self/statm")


def peak_memory() -> int:
    """Of the device if there is one, else of the process; bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource  # Not on Windows.

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_in_use() -> int:
    """Now: what is allocated on the device if there is one, else what the process holds; bytes.

    Where the system does not tell it, the peak.
    """
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    if PAGES.exists():
        return int(PAGES.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_memory()


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of Python and of those of the packages that are installed."""
    found = {"python": sys.version.split()[0]}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """System, cores, threads of torch and the device."""
    cuda = torch.cuda.is_available()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "memory": "allocated on the device" if cuda else "held by the process",
    }
