"""Which layers an optimizer trains, and which parameters belong to no layer."""

import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from rankwise.distributed.anchor import is_anchor
from rankwise.nn.base import check_module
from rankwise.nn.low_rank import LowRankModule

KEYS = frozenset({"params", "lr", "weight_decay", "max_step", "betas", "eps", "name", "initial_lr"})
"""What a group may hold: options, a name for loggers, and what a scheduler that goes on needs."""


class NamedLayer(NamedTuple):
    """A low-rank layer and its name in the model."""

    name: str
    layer: LowRankModule


def trainable_layers(model: nn.Module) -> list[NamedLayer]:
    """The low-rank layers of `model` whose factors train, in the order of `named_modules`.

    Of layers that share their factors, the first stands for all. Raises ValueError for a layer of
    which only a part trains, TypeError for what is no module.
    """
    check_module(model)
    found = []
    known: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, LowRankModule) and id(module.U) not in known:
            known.add(id(module.U))
            names = module.point_type._fields
            train = [n for n in names if getattr(module, n).requires_grad]
            if train and len(train) < len(names):
                raise ValueError(
                    f"of the factors of layer {name!r} only {', '.join(train)} require gradients. "
                    f"Freeze all three of {', '.join(names)} or none."
                )
            if train:
                found.append(NamedLayer(name, module))
    return found


def numbers_held(layers: Iterable[NamedLayer]) -> int:
    """Numbers in the factors: of a matrix `(m + n + 1) r`, for `S` is diagonal after a step."""
    modes = [mode for _, layer in layers for mode in layer.factors().modes()]
    return int(sum(mode.rank * mode.cost for mode in modes))


def param_groups(
    model: nn.Module, layers: list[NamedLayer], groups: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Torch's parameter groups: those asked for, then one with all that is left.

    A group's `params` may hold parameters, modules, or names of either. Raises ValueError where a
    parameter is in two groups, a layer's factors are torn apart, or a name is unknown.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    taken: dict[int, int] = {}
    result = []
    for index, group in enumerate(groups):
        _check_group(index, group)
        members = []
        for p in _members(model, group["params"]):
            if id(p) not in names:
                raise ValueError(f"group {index} holds a parameter that is not in the model")
            if taken.get(id(p), index) != index:
                raise ValueError(
                    f"parameter {names[id(p)]!r} is in group {taken[id(p)]} and in group {index}"
                )
            if id(p) not in taken and p.requires_grad:
                taken[id(p)] = index
                members.append(p)
        result.append({**group, "params": members})
    for name, layer in layers:
        owners = {taken.get(id(p)) for p in layer.factor_parameters()}
        if len(owners) > 1:
            letters = ", ".join(layer.point_type._fields)
            raise ValueError(f"the factors {letters} of layer {name!r} must be in the same group")
    rest = [
        p
        for name, p in model.named_parameters()
        if p.requires_grad and id(p) not in taken and not is_anchor(name)
    ]
    if rest or not result:
        result.append({"params": rest})
    return [group for group in result if group["params"]] or result


def _check_group(index: int, group: Any) -> None:
    if not isinstance(group, dict):
        raise TypeError(
            "`groups` must be dicts such as {'params': 'classifier', 'lr': 1e-3}, in a list; "
            f"got {group!r}"
        )
    if "params" not in group:
        raise ValueError(f"group {index} has no `params`, its keys are {sorted(group)}")
    unknown = sorted(group.keys() - KEYS)
    if unknown:
        near = difflib.get_close_matches(unknown[0], KEYS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Options are {', '.join(sorted(KEYS))}."
        raise ValueError(f"group {index} has an unknown option {unknown[0]!r}. {hint}")


def _members(model: nn.Module, params: Any) -> list[Tensor]:
    if isinstance(params, (str, Tensor, nn.Module)):
        params = [params]
    members: list[Tensor] = []
    for item in params:
        if isinstance(item, str):
            item = _by_name(model, item)
        members.extend(item.parameters() if isinstance(item, nn.Module) else [item])
    return members


def _by_name(model: nn.Module, name: str) -> Any:
    parameters = dict(model.named_parameters())
    if name in parameters:
        return parameters[name]
    try:
        return model.get_submodule(name)
    except AttributeError:
        known = [n for n, _ in model.named_modules() if n] + list(parameters)
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"the model has no module or parameter named {name!r}{hint}") from None
