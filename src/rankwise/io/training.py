"""The state of a training run in a file, from which it goes on exactly as if never stopped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rankwise.check.base import fingerprints
from rankwise.distributed.replicas import team_of
from rankwise.distributed.sharded import whole
from rankwise.distributed.team import Team
from rankwise.io import checkpoints
from rankwise.io.document import Document, read_document, write_document
from rankwise.io.fingerprint import check_base
from rankwise.io.optimizer_state import check_optimizer_state
from rankwise.io.random_state import check_random_state, random_state, set_random_state_
from rankwise.io.state import (
    check_fits,
    check_unwrapped,
    dense_trained,
    put_,
    trained_state,
    trained_tensors,
)
from rankwise.io.stored import Stored, check_names, stored
from rankwise.io.training_arguments import (
    FILE,
    check_inside,
    check_progress,
    check_states,
    given_place,
)
from rankwise.io.training_file import (
    MODEL_PREFIX,
    STATE_PREFIX,
    check_kinds,
    check_schedule,
    kind_of,
    object_of,
    states_of,
    tensors_of,
)
from rankwise.io.tree import flatten
from rankwise.nn.low_rank import low_rank_layers

FORMAT = "rankwise-training"
VERSION = 1


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
            it has a `step`, an integer from 0 to 10^18 - 1.
        keep: how many of the newest files stay in a folder, >= 1.
        score: how good the state is, lower is better, such as a held-out loss. The file in the
            folder with the lowest score stays beside the newest.

    Raises:
        TypeError: for something that cannot be saved, naming it. No file is written then.
        ValueError: for a model that `load_training` would refuse, with a NaN for example, for an
            optimizer of another model, and for a folder that holds a later step.
        OSError: naming the file, if the system cannot write it; what was there is as it was.
        RuntimeError: on the other processes, if one has failed, naming it and its error.
    """
    team = team_of(model)

    def checked() -> tuple[Path, Path]:
        place = given_place(path)
        check_progress(progress)
        checkpoints.check_keeping(keep, score)
        check_states(optimizer, scheduler)
        check_unwrapped(model)
        check_inside(model, optimizer)
        in_folder = place.suffix != FILE
        step = checkpoints.step_of(progress) if in_folder else 0
        return place, checkpoints.file_of(place, step) if in_folder else place

    # Where one process has nothing to save, the others must not begin to gather.
    place, file = team.everywhere(checked)
    parts, content = trained_tensors(model)
    values: list[Any] = []

    def flat() -> dict[str, Any]:
        stored(file, parts, content)
        states: dict[str, Any] = {"optimizer": optimizer.state_dict()}
        states |= {"scheduler": None if scheduler is None else scheduler.state_dict()}
        return {key: flatten(value, values, key) for key, value in states.items()}

    tree = team.everywhere(flat)
    tree |= {"random": flatten(random_state(team), values, "random")}
    tensors = {MODEL_PREFIX + name: t for name, t in parts.items()}
    tensors |= {f"{STATE_PREFIX}{i}": whole(t) for i, t in enumerate(values)}
    types = {"optimizer": kind_of(optimizer), "scheduler": kind_of(scheduler)}
    told: dict[str, Any] = {"model": content, "types": types, "tree": tree}
    told |= {"progress": dict(progress)}
    told |= {} if score is None else {checkpoints.SCORE: float(score)}
    team.by_first(lambda: _write(place, file, tensors, told, keep))


def _write(
    place: Path, file: Path, tensors: Mapping[str, Tensor], told: Mapping[str, Any], keep: int
) -> None:
    if file != place:
        step = told["progress"]["step"]
        checkpoints.check_newest(place, step, format=FORMAT, version=VERSION)
    write_document(file, tensors, told, format=FORMAT, version=VERSION)
    if file != place:
        checkpoints.retain(place, keep, format=FORMAT)


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
    team = team_of(model)
    place = team.everywhere(lambda: given_place(path))
    document = _document(place, team)
    state, states = team.everywhere(lambda: _checked(document, model, optimizer, scheduler))
    # What is sharded is gathered for these two, by all.
    now, before = fingerprints(model), _copied(trained_state(model))
    team.everywhere(lambda: check_base(state.path, state.fingerprints, now))

    def put() -> None:
        put_(model, state)
        try:
            optimizer.load_state_dict(states["optimizer"])
            if scheduler is not None:
                scheduler.load_state_dict(states["scheduler"])
        except Exception as error:
            raise ValueError(
                f"{document.path}: optimizer or scheduler do not fit: {error}"
            ) from error

    try:
        team.everywhere(put)
    except Exception:
        put_(model, before)
        raise
    set_random_state_(states["random"], team.process)
    return object_of(document, "progress")


def _checked(
    document: Document, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler | None
) -> tuple[Stored, dict[str, Any]]:
    """What belongs into the model, and the states of all else."""
    check_kinds(document, optimizer, scheduler)
    check_inside(model, optimizer)
    described, _ = (object_of(document, key) for key in ("model", "progress"))
    state = stored(document.path, tensors_of(document, MODEL_PREFIX), described)
    if state.layers and not low_rank_layers(model):
        raise ValueError("the model has no low-rank layers; `adapt_` it, then make the optimizer")
    check_fits(model, state)
    check_names(document.path, set(dense_trained(model)), set(state.dense), "dense parameter")
    states = states_of(document)
    check_random_state(document.path, states["random"])
    check_optimizer_state(document.path, optimizer, states["optimizer"])
    check_schedule(document.path, scheduler, states["scheduler"])
    return state, states


def _document(place: Path, team: Team) -> Document:
    if place.suffix == FILE:
        return team.everywhere(lambda: read_document(place, format=FORMAT, version=VERSION))
    return checkpoints.newest_whole(place, team, format=FORMAT, version=VERSION)


def _copied(state: Stored) -> Stored:
    layers = {
        name: entry._replace(factors=_cloned(entry.factors)) for name, entry in state.layers.items()
    }
    dense, statistics = (
        {name: t.detach().clone() for name, t in part.items()}
        for part in (state.dense, state.statistics)
    )
    return state._replace(layers=layers, dense=dense, statistics=statistics)


def _cloned(factors: Any) -> Any:
    return factors._make(t.detach().clone() for t in factors)
