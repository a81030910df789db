"""What a saved state of an optimizer must agree with, for the run to go on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rankwise.optim.dense import check_state as check_dense_state
from rankwise.optim.layers import NamedLayer
from rankwise.optim.moving import WAITED
from rankwise.optim.remembered import Shapes, check_count, check_triple
from rankwise.optim.rest import WITHOUT_INPUT
from rankwise.optim.step_control import StepControl
from rankwise.optim.update_rule import UpdateRule


def take_over(states: Mapping[Tensor, dict[str, Any]]) -> None:
    """Give an optimizer's states memory of their own.

    What a file holds lies anywhere in it, and products round by where their factors begin: a
    resumed run would not be the same to the last bit.
    """
    for state in states.values():
        state.update(copied(state))


def copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """What is remembered of one parameter, in memory of its own, row by row."""
    return {name: _copied(value) for name, value in state.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_copied, value))
    if isinstance(value, Tensor):
        return value.clone(memory_format=torch.contiguous_format)
    return value


def saved_parts(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """What `Optimizer.state_dict` adds to torch's; ValueError where that is missing."""
    own: dict[str, Any] | None = state_dict.get("rankwise")
    if own is None:
        raise ValueError(
            "`state_dict` is not from a rankwise.Optimizer: it has no 'rankwise' entry"
        )
    return own


def check_parts(own: Mapping[str, Any], **parts: object) -> None:
    """ValueError unless rule, integrator and control are of the types that were saved."""
    for part, value in parts.items():
        name = type(value).__name__
        if own.get(part) != name:
            raise ValueError(
                f"`state_dict` is from an optimizer with {part} {own.get(part)}, this one has "
                f"{name}"
            )


def check_saved_ranks(layers: list[NamedLayer], state: Mapping[Tensor, Any]) -> None:
    """ValueError unless momentum is of the ranks that the layers have."""
    for name, layer in layers:
        momentum = state.get(layer.factor_parameters()[0], {}).get("momentum")
        if momentum is not None:
            with _told(f"layer {name!r}"):
                check_triple("momentum", momentum)
    for name, ranks, saved in _differing(layers, state):
        raise ValueError(
            f"layer {name!r} has rank {_text(ranks)}, but the optimizer was saved with rank "
            f"{_text(saved)}. Load the model that was saved with it first."
        )


def check_remembered(
    layers: list[NamedLayer],
    states: Mapping[Tensor, Any],
    rule: UpdateRule,
    control: StepControl,
) -> None:
    """ValueError unless steps can go on from what is remembered of each parameter."""
    known: set[int] = set()
    for name, layer in layers:
        factors = layer.factor_parameters()
        known.update(map(id, factors))
        state, shapes = states.get(factors[0], {}), Shapes(*(p.shape for p in factors))
        with _told(f"layer {name!r}"):
            for counted in (WAITED, WITHOUT_INPUT):
                check_count(counted, state.get(counted, 0))
            rule.check_state(shapes, state)
            control.check_state(shapes, state)
    for p, state in states.items():
        if id(p) not in known:
            with _told(f"a dense parameter of shape {tuple(p.shape)}"):
                check_dense_state(p.shape, state)


@contextmanager
def _told(owner: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"the saved state of {owner}: {error}") from error


def check_ranks_kept(layers: list[NamedLayer], state: Mapping[Tensor, Any]) -> None:
    """ValueError where something else has changed a rank since the last step."""
    for name, ranks, saved in _differing(layers, state):
        raise ValueError(
            f"layer {name!r} has rank {_text(ranks)}, the momentum of its optimizer rank "
            f"{_text(saved)}: it was cut, loaded or switched since the last step. Put the earlier "
            "factors back, or make a new rankwise.Optimizer."
        )


def _differing(
    layers: list[NamedLayer], state: Mapping[Tensor, Any]
) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Layers with momentum of other ranks than their own: name, ranks, and those of momentum."""
    for name, layer in layers:
        U, _, V = layer.factor_parameters()
        momentum = state[U].get("momentum") if U in state else None
        # `K`, `L` have the columns of `U`, `V`.
        if momentum is not None and (momentum[0].shape, momentum[1].shape) != (U.shape, V.shape):
            yield name, layer.ranks, tuple(t.shape[1] for t in momentum[: len(layer.ranks)])


def _text(ranks: tuple[int, ...]) -> str:
    return " x ".join(map(str, ranks))
