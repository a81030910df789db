"""What becomes of every layer of a model in low rank, and what it saves."""

from dataclasses import dataclass
from typing import NamedTuple

from rankwise.surgery.text import aligned, grouped, title


class FactorizedLayer(NamedTuple):
    """One layer that owns parameters."""

    name: str
    kind: str
    """Name of its type before."""
    shape: tuple[int, ...]
    """(m, n) of its matrix; of other layers, the shape of the first parameter."""
    rank: int
    """0 where it stays dense."""
    weights: int
    """Numbers in its matrix before; 0 where it is none, or counted at a layer that shares it."""
    kept: int
    """Numbers in the form that runs, see `shrink`: `rank (m + n)`, or what it was."""
    products: int
    """Multiplications by the matrix in an example, before; without an example, in one place."""
    products_kept: int
    """And after."""
    reason: str
    """Why it stays dense; "" if it does not."""
    note: str


@dataclass(frozen=True)
class Factorization:
    """What `factorize_` would do, or did; `print` it."""

    layers: tuple[FactorizedLayer, ...]
    total: int
    """Parameters of the model before."""
    example: bool
    """Whether products are those of an example, or of one place (row, pixel, token)."""

    @property
    def factorized(self) -> tuple[FactorizedLayer, ...]:
        return tuple(layer for layer in self.layers if layer.rank)

    @property
    def ranks(self) -> dict[str, int]:
        return {layer.name: layer.rank for layer in self.factorized}

    @property
    def kept(self) -> int:
        """Parameters of the model afterwards, in the form that `shrink` gives it."""
        return self.total - sum(layer.weights - layer.kept for layer in self.layers)

    def __str__(self) -> str:
        header = ("layer", "count", "kind", "shape", "rank", "weights", "to", "")
        rows = [header, *(_row(group) for group in grouped(self.layers))]
        return "\n".join([*aligned(rows, right={1, 4, 5, 6}), "", *self._totals()])

    def _totals(self) -> list[str]:
        before = sum(layer.products for layer in self.layers)
        after = sum(layer.products_kept for layer in self.layers)
        where = "in the example" if self.example else "in one place of each layer"
        return [
            f"low rank: {len(self.factorized)} layers",
            f"parameters: {self.total:,} to {self.kept:,}{_fewer(self.total, self.kept)}",
            f"products {where}: {before:,} to {after:,}{_fewer(before, after)}",
        ]


def _fewer(before: int, after: int) -> str:
    if not before:
        return ""
    change = after / before - 1
    return f", {abs(change):.1%} {'fewer' if change <= 0 else 'more'}"


def _row(group: list[FactorizedLayer]) -> tuple[str, ...]:
    first, count = group[0], len(group)
    return (
        title(group),
        str(count),
        first.kind,
        "x".join(map(str, first.shape)),
        str(first.rank) if first.rank else "-",
        f"{first.weights * count:,}" if first.weights else "-",
        f"{first.kept * count:,}" if first.rank and first.weights else "-",
        first.reason or first.note,
    )
