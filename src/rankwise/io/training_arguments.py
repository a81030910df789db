"""What `save_training` and `load_training` are given, checked before anything is written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from rankwise.io.path import given_path

FILE = ".safetensors"
OTHER_FILES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
"""What a path may not end in: nobody would look for a folder there."""


def given_place(path: str | Path) -> Path:
    """Of a file, or a folder; ValueError for what ends as neither."""
    place = given_path(path, "path")
    if place.suffix in OTHER_FILES or (place.suffix != FILE and place.is_file()):
        raise ValueError(f"`path` must be a folder or end in {FILE}, got {str(path)!r}")
    return place


def check_states(optimizer: Any, scheduler: Any) -> None:
    """TypeError for what has no state."""
    for name, part in (("optimizer", optimizer), ("scheduler", scheduler)):
        if not hasattr(part, "state_dict") and not (part is None and name == "scheduler"):
            raise TypeError(f"`{name}` must have a `state_dict()`, got {type(part).__name__}")


def check_inside(model: nn.Module, optimizer: Any) -> None:
    """ValueError for an optimizer of another model."""
    own = {id(p) for p in model.parameters()}
    if any(id(p) not in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            "`optimizer` trains parameters that are not in `model`: it was made for another model, "
            "or for one that holds this one. Give the model that it was made for."
        )


def check_progress(progress: Mapping[str, Any]) -> None:
    """TypeError for what JSON cannot hold, or not as it is."""
    if not isinstance(progress, Mapping):
        raise TypeError(f"`progress` must be a dict such as {{'step': 50}}, got {progress!r}")
    try:
        same = json.loads(json.dumps(dict(progress))) == dict(progress)
    except TypeError as error:
        raise TypeError(f"`progress` must be what JSON can hold: {error}") from error
    if not same:
        raise TypeError(
            "`progress` does not come back from JSON as it is; use lists instead of tuples, "
            f"strings as keys, and no NaN. Got {progress!r}"
        )
