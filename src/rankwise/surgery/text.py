"""Tables of layers as plain text."""

from collections.abc import Container, Iterable, Sequence
from typing import Any, TypeVar

from rankwise.surgery.select import collapse

Named = TypeVar("Named", bound=tuple[Any, ...])


def aligned(rows: Sequence[Sequence[str]], *, right: Container[int]) -> list[str]:
    """One line a row, columns two spaces apart; those in `right` flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(w) if i in right else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def grouped(layers: Iterable[Named]) -> list[list[Named]]:
    """Tuples that begin with a layer's name; those that differ by an index only together."""
    groups: dict[tuple[object, ...], list[Named]] = {}
    for layer in layers:
        groups.setdefault((collapse(layer[0]), *layer[1:]), []).append(layer)
    return list(groups.values())


def title(group: Sequence[tuple[Any, ...]]) -> str:
    """One name for all layers of a group."""
    name: str = group[0][0]
    return (collapse(name) if len(group) > 1 else name) or "(the model itself)"
