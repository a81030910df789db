"""Whether the saved state of an optimizer is one that its steps can go on from.

Torch takes what it is given: a wrong moment or rate is found in the next step, or never.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from rankwise.io.json_object import short

OF_A_PARAMETER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
"""Torch's names of what has the shape of its parameter."""
COUNTING = ("torch", "rankwise")
"""Packages whose optimizers count the steps of what has moments."""
MOST = 2**63
"""Of an integer: larger ones are no number of steps, and no float."""
COUNTS = ("steps", "skipped")
"""What a rankwise optimizer counts."""


def check_optimizer_state(path: Path, optimizer: Optimizer, saved: Any) -> None:
    """ValueError, naming the file, unless groups and moments are of the kind of those here."""
    groups = saved.get("param_groups") if isinstance(saved, dict) else None
    states = saved.get("state") if isinstance(saved, dict) else None
    own = optimizer.state_dict()
    if not isinstance(groups, list) or not isinstance(states, dict):
        raise ValueError(f"{path}: the state of the optimizer is {short(saved)}")
    if len(groups) != len(own["param_groups"]):
        told = f"{len(groups)} groups of parameters, this one has {len(own['param_groups'])}"
        raise ValueError(f"{path}: the optimizer was saved with {told}")
    for group, mine in zip(groups, own["param_groups"], strict=True):
        _check_alike(path, "group", group, mine)
        lacking = sorted(optimizer.defaults.keys() & mine.keys() - group.keys())
        # Torch fills in what its own optimizers have gained since.
        if lacking and "rankwise" in own:
            raise ValueError(f"{path}: a group of the optimizer has no {lacking[0]!r}")
    if "rankwise" in own and "rankwise" in saved:
        counted = saved["rankwise"]
        _check_alike(path, "state", counted, own["rankwise"])
        if any(type(counted.get(n)) is not int or counted[n] < 0 for n in COUNTS):
            raise ValueError(f"{path}: the optimizer counts {short(counted)}")
    counted = type(optimizer).__module__.partition(".")[0] in COUNTING
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for place, state in states.items():
        if type(place) is int and 0 <= place < len(parameters):
            _check_moments(path, place, state, parameters[place], counted=counted)


def _check_alike(path: Path, what: str, saved: Any, own: Mapping[str, Any]) -> None:
    if not isinstance(saved, dict):
        raise ValueError(f"{path}: a {what} of the optimizer is {short(saved)}")
    for name, value in own.items():
        if name in saved and not alike(saved[name], value):
            raise ValueError(
                f"{path}: {name!r} in a {what} of the optimizer is {short(saved[name])}, here "
                f"it is {short(value)}"
            )


def alike(saved: Any, own: Any) -> bool:
    """Whether it may take the place of `own`: of its kind, a number, as many parts."""
    if own is None or saved is None:
        return True
    if isinstance(own, (int, float)):
        number = saved.item() if isinstance(saved, Tensor) and saved.numel() == 1 else saved
        if isinstance(number, int):
            return abs(number) < MOST
        return isinstance(number, float) and not math.isnan(number)
    if isinstance(own, Tensor):
        return isinstance(saved, Tensor) and saved.shape == own.shape
    if isinstance(own, (tuple, list)):
        same = isinstance(saved, (tuple, list)) and len(saved) == len(own)
        return same and all(map(alike, saved, own))
    return isinstance(saved, type(own))


def _counts(step: Any) -> bool:
    """A number of steps, as torch's optimizers keep it: a number, or a tensor of one."""
    if isinstance(step, Tensor):
        return step.numel() == 1 and step.ndim == 0 and bool(step >= 0)
    return type(step) in (int, float) and 0 <= step < math.inf


def _check_moments(path: Path, place: int, state: Any, parameter: Tensor, *, counted: bool) -> None:
    if not isinstance(state, dict):
        raise ValueError(f"{path}: the optimizer's state of parameter {place} is {short(state)}")
    if not _counts(state.get("step", 0)) or (
        counted and "exp_avg" in state and "step" not in state
    ):
        raise ValueError(
            f"{path}: the optimizer's parameter {place} has taken {short(state.get('step'))} steps"
        )
    for name in OF_A_PARAMETER:
        value = state.get(name)
        if value is not None and getattr(value, "shape", None) != parameter.shape:
            raise ValueError(
                f"{path}: {name!r} of the optimizer's parameter {place} does not have its shape, "
                f"{tuple(parameter.shape)}"
            )
        if isinstance(value, Tensor) and not _sound(name, value):
            raise ValueError(
                f"{path}: {name!r} of the optimizer's parameter {place} has values that are no "
                "moments, such as NaN"
            )


def _sound(name: str, moment: Tensor) -> bool:
    """Whether steps can go on from it: of a second moment that has overflowed they can."""
    if moment.is_complex() or not name.endswith("_sq"):
        return bool(moment.isfinite().all())
    return bool((moment >= 0).all())
