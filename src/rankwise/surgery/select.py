"""Choosing layers of a model by name, type or predicate, and saying so when a choice finds nothing.

A string is a glob. It matches the full dotted name of a module, or a dotted end of it: "query"
matches "encoder.layer.0.attention.self.query", and so does "layer.*.query".
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import nn

Pattern: TypeAlias = str | re.Pattern[str] | type | Callable[[str, nn.Module], bool]
Select: TypeAlias = Pattern | Sequence["Select"] | None
"""A glob, a compiled regex (searched in the full name), a module type, a predicate of name and
module, or a sequence of these (any of them)."""

MAX_LISTED = 12
FEW = 4
"""So many names are told one by one, indices and all."""


def patterns(select: Select, argument: str) -> list[Pattern]:
    """The single patterns of `select`; `argument` is its name, for the error.

    Raises TypeError for anything that is not a `Select`.
    """
    if select is None:
        return []
    if isinstance(select, (str, re.Pattern, type)) or callable(select):
        return [select]
    if isinstance(select, (Sequence, set, frozenset)):
        return [pattern for part in select for pattern in patterns(part, argument)]
    raise TypeError(
        f"`{argument}` must be a glob, a compiled regex, a module type, a function of (name, "
        f"module) or a sequence of these, got {select!r}"
    )


def matches(pattern: Pattern, name: str, module: nn.Module) -> bool:
    """Whether `pattern` matches the module of that full name."""
    if isinstance(pattern, str):
        return fnmatchcase(name, pattern) or fnmatchcase(name, "*." + pattern)
    if isinstance(pattern, re.Pattern):
        return pattern.search(name) is not None
    if isinstance(pattern, type):
        return isinstance(module, pattern)
    return bool(pattern(name, module))


def choose(
    select: Select, layers: Mapping[str, nn.Module], model: nn.Module, *, argument: str
) -> set[str]:
    """The names in `layers`, all linear layers of `model`, that any pattern of `select` matches.

    Raises ValueError for a glob, regex or type that matches none of them.
    """
    chosen: set[str] = set()
    for pattern in patterns(select, argument):
        found = {name for name, module in layers.items() if matches(pattern, name, module)}
        if not found and (isinstance(pattern, (str, re.Pattern, type))):
            raise ValueError(_no_match(pattern, layers, model, argument))
        chosen |= found
    return chosen


def pattern_text(pattern: Pattern) -> str:
    """How a pattern is quoted in messages."""
    if isinstance(pattern, re.Pattern):
        return f"regex {pattern.pattern!r}"
    return pattern.__name__ if isinstance(pattern, type) else repr(pattern)


def collapse(name: str) -> str:
    """`name` with every layer index replaced by `*`."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _collapsed(name: str) -> str:
    """As `collapse`, but a name that is nothing but an index, as in `nn.Sequential`, stays."""
    return name if name.replace(".", "").isdigit() else collapse(name)


def near_names(wanted: str, names: Sequence[str]) -> list[str]:
    """Names, or ends of names, spelt like `wanted`; layers that differ by an index count once."""
    length = len(wanted.split("."))
    known: dict[str, None] = {}
    for name in map(_collapsed, names):
        parts = name.split(".")
        for ending in (parts, parts[-length:], parts[:length]):
            known[".".join(ending)] = None
    return difflib.get_close_matches(collapse(wanted), list(known), n=4, cutoff=0.6)


def listing(names: Sequence[str]) -> str:
    """The names on one line; of many, layers that differ by an index once, with their number."""
    counts: dict[str, int] = {}
    for name in names if len(names) <= FEW else map(_collapsed, names):
        counts[name] = counts.get(name, 0) + 1
    shown = [f"{n} ({k}x)" if k > 1 else n for n, k in list(counts.items())[:MAX_LISTED]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f", and {more} more" if more else "")


def _no_match(
    pattern: Pattern, layers: Mapping[str, nn.Module], model: nn.Module, argument: str
) -> str:
    head = f"`{argument}`: {pattern_text(pattern)} matches no linear layer."
    if not layers:
        return f"{head} The model has none."
    if isinstance(pattern, type):
        kinds = sorted({type(module).__name__ for module in layers.values()})
        return f"{head} The linear layers of the model are of type {', '.join(kinds)}."
    hint = _hint(pattern, layers, model)
    return f"{head}{hint} The linear layers are: {listing(list(layers))}."


def _hint(pattern: Pattern, layers: Mapping[str, nn.Module], model: nn.Module) -> str:
    other = [
        (name, module) for name, module in model.named_modules() if matches(pattern, name, module)
    ]
    if other:
        name, module = other[0]
        inside = sum(layer.startswith(f"{name}.") for layer in layers)
        if inside:
            return f" It matches {name!r}, which contains {inside} of them: write {name + '.*'!r}."
        return f" It matches {name!r}, of type {type(module).__name__}."
    near = near_names(pattern, list(layers)) if isinstance(pattern, str) else []
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
