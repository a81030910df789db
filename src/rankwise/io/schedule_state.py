"""Whether the saved state of a scheduler is one that it can go on from.

A stock scheduler takes any names for its own: those of methods, and what its steps read.
"""

from pathlib import Path
from typing import Any

from rankwise.io.json_object import short
from rankwise.io.optimizer_state import alike

PERIODS = ("step_size", "T_0", "T_i", "T_max", "total_iters", "total_steps")
"""Torch's names of what its schedulers divide by."""


def check_schedule(path: Path, scheduler: Any, state: Any) -> None:
    """ValueError, naming the file, unless `state` is of the kind of that of `scheduler`."""
    if scheduler is None:
        return
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"{path}: the state of the scheduler is {short(state)}, no dict of names")
    own = scheduler.state_dict()
    for name, value in state.items():
        if name.startswith("__") or callable(getattr(scheduler, name, None)):
            raise ValueError(f"{path}: the state of the scheduler names {name!r}, a method")
        if name in own and not _goes_on(name, value, own[name]):
            raise ValueError(
                f"{path}: {name!r} in the state of the scheduler is {short(value)}, here it is "
                f"{short(own[name])}"
            )


def _goes_on(name: str, saved: Any, own: Any) -> bool:
    if saved is None or (name in PERIODS and not saved):
        return saved is own or own == saved
    return alike(saved, own)
