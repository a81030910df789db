"""Cutting trained low-rank layers to lower ranks, by a tolerance or a largest rank."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rankwise.nn.low_rank import low_rank_layers
from rankwise.numerics.factors import Factors
from rankwise.numerics.given import check_number
from rankwise.numerics.rounding import rounded
from rankwise.numerics.truncate import rank_for_tolerance
from rankwise.numerics.tucker import Tucker, first_mode, hosvd, left_singular, second_mode
from rankwise.surgery.plan import check_rank
from rankwise.surgery.text import aligned, grouped, title

HEADER = ("layer", "count", "rank before", "after", "relative error, largest")


class Cut(NamedTuple):
    """What became of one layer."""

    name: str
    before: tuple[int, ...]
    """Its ranks: one of a matrix, two of a Tucker kernel."""
    after: tuple[int, ...]
    norm: float
    """`||scale * W||_F` before."""
    error: float
    """`||scale * (W - W')||_F`."""
    parameters: tuple[int, int]
    """Numbers in its factors, before and after."""

    @property
    def relative(self) -> float:
        """The error relative to the norm; 0 for a layer of zeros."""
        return self.error / self.norm if self.norm else 0.0


@dataclass(frozen=True)
class Truncation:
    """What was cut; `print` it."""

    layers: tuple[Cut, ...]

    @property
    def parameters(self) -> tuple[int, int]:
        """Numbers in all factors, before and after."""
        before, after = zip(*(cut.parameters for cut in self.layers), strict=True)
        return sum(before), sum(after)

    @property
    def error(self) -> float:
        """Error of all layers together, relative to their norm (roots of sums of squares)."""
        norm = math.hypot(*(cut.norm for cut in self.layers))
        return math.hypot(*(cut.error for cut in self.layers)) / norm if norm else 0.0

    def rows(self) -> list[tuple[str, ...]]:
        """A line for the layers that differ by an index only; columns as in `HEADER`."""
        ranks = [(cut.name, _text(cut.before), _text(cut.after)) for cut in self.layers]
        errors = {cut.name: cut.relative for cut in self.layers}
        return [
            (
                title(group),
                str(len(group)),
                *group[0][1:],
                f"{max(errors[n] for n, *_ in group):.1e}",
            )
            for group in grouped(ranks)
        ]

    def __str__(self) -> str:
        before, after = self.parameters
        return "\n".join(
            [
                *aligned([HEADER, *self.rows()], right={1, 2, 3, 4}),
                "",
                f"parameters in factors: {before:,} before, {after:,} after "
                f"({1 - after / before:.1%} fewer)",
                f"relative error of all layers together: {self.error:.1e}",
            ]
        )


@torch.no_grad()
def truncate_(
    model: nn.Module, *, rtol: float | None = None, max_rank: int | None = None
) -> Truncation:
    """Cut the factors of all low-rank layers, in place; each by SVD, with the least error.

    Of `W = U S V^T` the directions with the smallest singular values go, computed in float64: as
    many as `rtol` allows, and those beyond `max_rank`. A layer keeps at least one. Where none has
    to go the factors stay bit for bit.

    The momentum of an optimizer is of the old ranks. Its next step says so; make a new
    `rankwise.Optimizer` to train on.

    Args:
        model: adapted or factorised.
        rtol: error allowed in each layer, `||W - W'||_F / ||W||_F`, in [0, 1). None: no tolerance.
        max_rank: the largest rank that is left, >= 1, whatever the error. None: no limit.

    Returns:
        Ranks, errors and sizes, layer by layer; `print` it.

    Raises:
        ValueError: without low-rank layers, with merged ones, or where neither limit is given.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"`model` must be a torch.nn.Module, got {type(model).__name__}; an adapter has "
            "`adapter.rounded(...)`"
        )
    check_limits(rtol, max_rank)
    layers = low_rank_layers(model)
    if not layers:
        raise ValueError("the model has no low-rank layer to cut; `adapt_(model)` makes them")
    merged = [name for name, layer in layers.items() if layer.merged]
    if merged:
        raise ValueError(f"layer {merged[0]!r} is merged; call `unmerge_(model)` before cutting")
    points = {name: (layer.factors(), layer.scale) for name, layer in layers.items()}
    results = cut_all(points, rtol, max_rank)
    for name, layer in layers.items():
        layer.set_factors_(results[name][0])
    return Truncation(tuple(cut for _, cut in results.values()))


def check_limits(rtol: float | None, max_rank: int | None) -> None:
    """ValueError unless one limit is given and both make sense."""
    if rtol is None and max_rank is None:
        raise ValueError("give `rtol`, the relative error allowed, or `max_rank`, or both")
    if rtol is not None:
        check_number("rtol", rtol)
    if rtol is not None and not 0.0 <= rtol < 1.0:
        raise ValueError(f"`rtol` must be in [0, 1), got {rtol}")
    if max_rank is not None:
        check_rank(max_rank, "max_rank")


def cut_all(
    points: Mapping[str, tuple[Any, float]], rtol: float | None, max_rank: int | None
) -> dict[str, tuple[Any, Cut]]:
    """Each weight, given with the scale of its layer, cut within both limits; what became of it."""
    results = {}
    for name, (f, scale) in points.items():
        new, error = _cut(f, rtol or 0.0, max_rank)
        ranks = [tuple(mode.rank for mode in p.modes()) for p in (f, new)]
        sizes = sum(t.numel() for t in f), sum(t.numel() for t in new)
        norm, error = (abs(scale) * value for value in (float(f.norm().double()), error))
        results[name] = new, Cut(name, ranks[0], ranks[1], norm, error, sizes)
    return results


def _cut(f: Any, rtol: float, max_rank: int | None) -> tuple[Any, float]:
    if isinstance(f, Factors):
        return rounded(f, rtol=rtol, max_rank=max_rank)
    return _cut_tucker(f, rtol, max_rank)


def _cut_tucker(f: Tucker, rtol: float, max_rank: int | None) -> tuple[Tucker, float]:
    """Half of the squared error to each mode: together they are at most what was allowed."""
    core = f.core.double()
    p, q = (
        _rank(mode, rtol / math.sqrt(2), max_rank) for mode in (first_mode(core), second_mode(core))
    )
    places = core[0, 0].numel()
    p, q = min(p, q * places), min(q, p * places)
    if (p, q) == f.ranks:
        return f, 0.0
    inner = hosvd(core, (p, q))
    new = Tucker(f.U.double() @ inner.U, inner.core, f.V.double() @ inner.V)
    error = float((core - inner.dense()).norm())
    return Tucker(*(t.to(f.core.dtype).contiguous() for t in new)), error


def _rank(X: Tensor, rtol: float, max_rank: int | None) -> int:
    rank = rank_for_tolerance(left_singular(X)[1], rtol=rtol)
    return rank if max_rank is None else min(rank, max_rank)


def _text(ranks: tuple[int, ...]) -> str:
    return " x ".join(map(str, ranks))
