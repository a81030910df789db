"""The state of a training run in a file, from which it goes on exactly as if never stopped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rankwise.check.base import fingerprints
from rankwise.distributed.replicas import replicas_in
from rankwise.distributed.sharded import whole
from rankwise.io import checkpoints
from rankwise.io.document import Document, read_document, write_document
from rankwise.io.fingerprint import check_base
from rankwise.io.json_object import short
from rankwise.io.optimizer_state import check_optimizer_state
from rankwise.io.path import given_path
from rankwise.io.random_state import check_random_state, random_state, set_random_state_
from rankwise.io.schedule_state import check_schedule
from rankwise.io.state import check_fits, dense_trained, put_, trained_tensors
from rankwise.io.stored import check_names, stored
from rankwise.io.tree import flatten, unflatten
from rankwise.nn.low_rank import low_rank_layers

FORMAT = "rankwise-training"
VERSION = 1
STATE_PREFIX = "state."
MODEL_PREFIX = "model."
FILE = ".safetensors"
OTHER_FILES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
"""What a path may not end in: nobody would look for a folder there."""


def save_training(
    path: str | Path,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler | None = None,
    progress: Mapping[str, Any],
    keep: int = 2,
    score: float | None = None,
) -> None:
    """Write all that a run needs to go on, atomically, as one safetensors file.

    Into a folder it is written as `step-000150.safetensors`, and older ones go; `load_training`
    takes the newest whole one.

    In it are what trains in the model (see `save`), the states of optimizer and scheduler, those
    of the random generators (torch on the CPU and on every CUDA device, Python's `random`), and
    `progress`. The order of the data is not: put into `progress` what is needed to find it again.

    On several processes, after `rankwise.distributed.prepare`, call it on all of them: what is
    sharded is gathered, and so are the random states, for dropout differs from one to another. The
    first one writes, its `progress` too, and the file is there when the call returns anywhere. It
    is like that of a single process, and continues on any number of them.

    Args:
        path: of the file, which ends in `.safetensors`; or a folder, made if need be.
        model: adapted, or without low-rank layers; frozen weights are not saved.
        optimizer: any whose `state_dict()` holds tensors, numbers, strings and containers of these;
            all that it trains is in `model`.
        scheduler: the same.
        progress: what JSON can hold, returned by `load_training`; keys are strings. For a folder
            it has a `step`, an integer >= 0.
        keep: how many of the newest files stay in a folder, >= 1.
        score: how good the state is, lower is better, such as a held-out loss. The file in the
            folder with the lowest score stays beside the newest.

    Raises:
        TypeError: for something that cannot be saved, naming it. No file is written then.
        ValueError: for a model that `load_training` would refuse, with a NaN for example, for an
            optimizer of another model, and for a folder that holds a later step.
        OSError: naming the file, if the system cannot write it; what was there is as it was.
        RuntimeError: on the other processes, if the first one could not write.
    """
    place = _checked(path)
    _check_json(progress)
    checkpoints.check_keeping(keep, score)
    step = None if place.suffix == FILE else checkpoints.step_of(progress)
    file = place if step is None else checkpoints.file_of(place, step)
    _check_states(optimizer, scheduler)
    _check_inside(model, optimizer)
    parts, content = trained_tensors(model)
    stored(file, parts, content)
    replicas = replicas_in(model)
    values: list[Any] = []
    state = {
        "optimizer": optimizer.state_dict(),
        "scheduler": None if scheduler is None else scheduler.state_dict(),
        "random": random_state(replicas),
    }
    tree = {key: flatten(value, values, key) for key, value in state.items()}
    tensors = {MODEL_PREFIX + name: t for name, t in parts.items()}
    tensors |= {f"{STATE_PREFIX}{i}": whole(t) for i, t in enumerate(values)}
    types = {"optimizer": _kind(optimizer), "scheduler": _kind(scheduler)}
    told: dict[str, Any] = {"model": content, "types": types, "tree": tree}
    told |= {"progress": dict(progress)}
    told |= {} if score is None else {checkpoints.SCORE: float(score)}

    def write() -> None:
        if step is not None:
            checkpoints.check_newest(place, step, format=FORMAT, version=VERSION)
        write_document(file, tensors, told, format=FORMAT, version=VERSION)
        if step is not None:
            checkpoints.retain(place, keep, format=FORMAT)

    if replicas is None:
        write()
    else:
        replicas.once(write)


def load_training(
    path: str | Path,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler | None = None,
) -> dict[str, Any]:
    """Put a run back where `save_training` left it; ranks follow the file.

    On several processes, call it on all of them, after `rankwise.distributed.prepare`. On as many
    as before, each gets its own random state back. On more, the new ones get states of their own,
    drawn from the first; on fewer, those of the rest are left. Then a run without dropout goes on
    as before if it gets the same batches in all, up to rounding.

    Of a folder, the newest whole file is loaded; a RuntimeWarning names those after it, which are
    damaged. On several processes it is the one that the first one finds.

    Args:
        path: of the file, or of the folder.
        model: adapted in the same layers, with the same dense parameters training.
        optimizer: made for this model as the saved one was.
        scheduler: of the same type as the saved one, or None if none was saved.

    Returns:
        The `progress` that was saved.

    Raises:
        FileNotFoundError: if there is no such file, or none in the folder.
        ValueError: if the file is damaged, or all in the folder are; if file, model, optimizer and
            scheduler do not belong together, or the frozen weights are not those of the run. The
            model is then unchanged.
    """
    document = _document(_checked(path), model)
    _check_kinds(document, optimizer, scheduler)
    _check_inside(model, optimizer)
    described, progress = (_object(document, key) for key in ("model", "progress"))
    state = stored(document.path, _part(document, MODEL_PREFIX), described)
    if state.layers and not low_rank_layers(model):
        raise ValueError("the model has no low-rank layers; `adapt_` it, then make the optimizer")
    check_fits(model, state)
    check_base(state.path, state.fingerprints, fingerprints(model))
    check_names(document.path, set(dense_trained(model)), set(state.dense), "dense parameter")
    tree = _tree(document)
    check_random_state(document.path, tree["random"])
    check_optimizer_state(document.path, optimizer, tree["optimizer"])
    check_schedule(document.path, scheduler, tree["scheduler"])
    before = stored(document.path, *_copied(model))
    put_(model, state)
    try:
        optimizer.load_state_dict(tree["optimizer"])
        if scheduler is not None:
            scheduler.load_state_dict(tree["scheduler"])
    except Exception as error:
        put_(model, before)
        raise ValueError(f"{document.path}: optimizer or scheduler do not fit: {error}") from error
    replicas = replicas_in(model)
    set_random_state_(tree["random"], 0 if replicas is None else replicas.process)
    return dict(progress)


def _document(place: Path, model: nn.Module) -> Document:
    if place.suffix == FILE:
        return read_document(place, format=FORMAT, version=VERSION)
    return checkpoints.newest_whole(place, replicas_in(model), format=FORMAT, version=VERSION)


def _check_states(optimizer: Any, scheduler: Any) -> None:
    for name, part in (("optimizer", optimizer), ("scheduler", scheduler)):
        if not hasattr(part, "state_dict") and not (part is None and name == "scheduler"):
            raise TypeError(f"`{name}` must have a `state_dict()`, got {type(part).__name__}")


def _check_inside(model: nn.Module, optimizer: Any) -> None:
    own = {id(p) for p in model.parameters()}
    if any(id(p) not in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            "`optimizer` trains parameters that are not in `model`: it was made for another model, "
            "or for one that holds this one. Give the model that it was made for."
        )


def _checked(path: str | Path) -> Path:
    place = given_path(path, "path")
    if place.suffix in OTHER_FILES or (place.suffix != FILE and place.is_file()):
        raise ValueError(f"`path` must be a folder or end in {FILE}, got {str(path)!r}")
    return place


def _check_json(progress: Mapping[str, Any]) -> None:
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


def _kind(part: object) -> str | None:
    return None if part is None else type(part).__name__


def _check_kinds(document: Document, optimizer: Optimizer, scheduler: LRScheduler | None) -> None:
    types = _object(document, "types")
    for name, part in (("optimizer", optimizer), ("scheduler", scheduler)):
        kind = types.get(name)
        if kind != _kind(part):
            told = kind if isinstance(kind, str) else short(kind)
            raise ValueError(f"{document.path} was saved with {name} {told}, got {_kind(part)}")


def _object(document: Document, key: str) -> dict[str, Any]:
    value = document.content.get(key)
    if not isinstance(value, dict):
        raise ValueError(f"{document.path}: {key!r} of the metadata is {short(value)}, no object")
    return value


def _part(document: Document, prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): t
        for name, t in document.tensors.items()
        if name.startswith(prefix)
    }


def _tree(document: Document) -> dict[str, Any]:
    by_index = _part(document, STATE_PREFIX)
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


def _copied(model: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    tensors, content = trained_tensors(model)
    return {name: t.detach().clone() for name, t in tensors.items()}, content
