"""Choosing the dense parameters that train beside the factors."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from rankwise.nn.low_rank import LowRankModule
from rankwise.surgery.select import (
    Pattern,
    Select,
    listing,
    matches,
    near_names,
    pattern_text,
    patterns,
)


class DenseParameter(NamedTuple):
    """A trainable parameter that is not a factor."""

    name: str
    shape: tuple[int, ...]
    numel: int


def dense_parameters(
    model: nn.Module, train: Select, *, frozen: Iterable[nn.Module]
) -> tuple[DenseParameter, ...]:
    """The parameters that `train` selects, each object once, in the order of the model.

    A pattern that matches a module selects all its parameters, but those of `frozen` modules
    (to be adapted) and of low-rank layers.

    Raises ValueError for a pattern that selects nothing, or a weight shared with a frozen module.
    """
    kept = list(frozen)
    owners = {id(module) for module in kept}
    inside = {
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if id(module) in owners or isinstance(module, LowRankModule)
    }
    fixed = {id(p) for module in kept for p in module.parameters()}
    free = {
        name: p
        for name, p in model.named_parameters(remove_duplicate=False)
        if inside.isdisjoint(_prefixes(name))
    }
    names: dict[str, None] = {}
    for pattern in patterns(train, "train"):
        found = _selected(pattern, model, list(free))
        if not found and isinstance(pattern, (str, re.Pattern, type)):
            raise ValueError(_no_match(pattern, list(free)))
        names.update(dict.fromkeys(found))
    for name in names:
        if id(free[name]) in fixed:
            raise ValueError(
                f"`train`: parameter {name!r} is also the weight of an adapted layer, which stays "
                "frozen. Exclude that layer, or do not train this parameter."
            )
        if not free[name].is_floating_point():
            raise ValueError(f"`train`: parameter {name!r} is quantised and cannot train")
    once: dict[int, str] = {}
    for name in free:
        if name in names:
            once.setdefault(id(free[name]), name)
    return tuple(
        DenseParameter(name, tuple(free[name].shape), free[name].numel()) for name in once.values()
    )


def _selected(pattern: Pattern, model: nn.Module, names: list[str]) -> list[str]:
    modules = {
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if name and matches(pattern, name, module)
    }
    by_name = isinstance(pattern, (str, re.Pattern))
    return [
        name
        for name in names
        if not modules.isdisjoint(_prefixes(name)) or (by_name and matches(pattern, name, model))
    ]


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _no_match(pattern: Pattern, names: list[str]) -> str:
    modules = dict.fromkeys(prefix for name in names for prefix in _prefixes(name))
    near = near_names(pattern, [*modules, *names]) if isinstance(pattern, str) else []
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return (
        f"`train`: {pattern_text(pattern)} matches no parameter outside the adapted layers.{hint} "
        f"These are: {listing(names) or 'none'}."
    )
