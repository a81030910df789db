"""The parts of a training state in a file."""

from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rankwise.io.document import Document
from rankwise.io.json_object import short
from rankwise.io.stored import check_names
from rankwise.io.tree import unflatten

STATE_PREFIX = "state."
MODEL_PREFIX = "model."


def object_of(
    document: Document, key: str, default: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What the metadata has under `key`; ValueError unless that is an object."""
    value = document.content.get(key, default)
    if not isinstance(value, dict):
        raise ValueError(f"{document.path}: {key!r} of the metadata is {short(value)}, no object")
    return value


def tensors_of(document: Document, prefix: str) -> dict[str, Any]:
    """Those whose names begin so, by the rest of them."""
    return {
        name.removeprefix(prefix): t
        for name, t in document.tensors.items()
        if name.startswith(prefix)
    }


def states_of(document: Document) -> dict[str, Any]:
    """The states of optimizer, scheduler and random generators."""
    by_index = tensors_of(document, STATE_PREFIX)
    names = {str(i) for i in range(len(by_index))}
    check_names(document.path, names, set(by_index), "state tensor")
    tensors = [by_index[str(i)] for i in range(len(by_index))]
    tree = document.content.get("tree")
    if not isinstance(tree, dict) or set(tree) != {"optimizer", "scheduler", "random"}:
        raise ValueError(f"{document.path}: the metadata has no tree of states")
    try:
        return {key: unflatten(node, tensors) for key, node in tree.items()}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{document.path}: {error}") from error


def kind_of(part: object) -> str | None:
    return None if part is None else type(part).__name__


def check_kinds(document: Document, optimizer: Optimizer, scheduler: LRScheduler | None) -> None:
    """ValueError where optimizer or scheduler are of another type than those saved."""
    types = object_of(document, "types")
    for name, part in (("optimizer", optimizer), ("scheduler", scheduler)):
        kind = types.get(name)
        if kind != kind_of(part):
            told = kind if isinstance(kind, str) else short(kind)
            raise ValueError(f"{document.path} was saved with {name} {told}, got {kind_of(part)}")


def check_schedule(path: Path, scheduler: Any, state: Any) -> None:
    """A stock scheduler takes any names for its own: those of methods, and what steps read."""
    if scheduler is None:
        return
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"{path}: the state of the scheduler is {short(state)}, no dict of names")
    for name in state:
        if name.startswith("__") or callable(getattr(scheduler, name, None)):
            raise ValueError(f"{path}: the state of the scheduler names {name!r}, a method")
