"""The adapter as a value, and its algebra."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import Tensor

from rankwise.adapters.sums import linear_combination
from rankwise.compress.truncation import Truncation, check_limits, cut_all
from rankwise.io.stored import Stored, StoredLayer
from rankwise.surgery.text import aligned, grouped, title


@dataclass(frozen=True, eq=False, repr=False)
class Adapter:
    """Low-rank updates `scale * U S V^T` by layers, and what else trained; immutable.

    `a + b`, `a - b`, `0.7 * a`, `a / 2`, `-a` are sums of the updates, computed in float64, which
    the result has too (see `to`): no dense matrix is formed, ranks add up. A layer that one of both
    lacks is zero there. Dense tensors are no updates but values: a sum keeps those that are equal
    in both and raises ValueError where they differ; `without_dense` and `with_dense` say which to
    take, `rankwise.adapters.mean` averages them.
    """

    stored: Stored
    rounding: Truncation | None = None
    """What `rounded` cut off; None of any other adapter."""

    @property
    def layers(self) -> Mapping[str, StoredLayer]:
        """The low-rank layers by name, with `factors` and `scale`."""
        return self.stored.layers

    @property
    def dense(self) -> Mapping[str, Tensor]:
        """Dense parameters that train, such as a head's."""
        return self.stored.dense

    @property
    def ranks(self) -> dict[str, int | tuple[int, ...]]:
        """Of each layer; two of a Tucker kernel."""
        modes = {name: [m.rank for m in x.factors.modes()] for name, x in self.layers.items()}
        return {n: ranks[0] if len(ranks) == 1 else tuple(ranks) for n, ranks in modes.items()}

    @property
    def parameters(self) -> int:
        """Numbers in all factors."""
        return sum(t.numel() for layer in self.layers.values() for t in layer.factors)

    def norm(self) -> float:
        """Frobenius norm of the updates of all layers together."""
        return math.hypot(
            *(abs(x.scale) * float(x.factors.norm().double()) for x in self.layers.values())
        )

    def __add__(self, other: object) -> "Adapter":
        return self._plus(other, 1.0)

    def __radd__(self, other: object) -> "Adapter":
        """For Python's `sum`, which begins with 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __sub__(self, other: object) -> "Adapter":
        return self._plus(other, -1.0)

    def __mul__(self, factor: object) -> "Adapter":
        if not isinstance(factor, Real):
            return NotImplemented
        value = float(factor)
        if not math.isfinite(value):
            raise ValueError(f"an adapter times {value} is no adapter")
        return Adapter(linear_combination([(value, self.stored)]))

    __rmul__ = __mul__

    def __truediv__(self, divisor: object) -> "Adapter":
        if not isinstance(divisor, Real):
            return NotImplemented
        return self * (1.0 / float(divisor))

    def __neg__(self) -> "Adapter":
        return self * -1.0

    def _plus(self, other: object, sign: float) -> "Adapter":
        if not isinstance(other, Adapter):
            return NotImplemented
        return Adapter(linear_combination([(1.0, self.stored), (sign, other.stored)]))

    def rounded(self, *, rtol: float | None = None, max_rank: int | None = None) -> "Adapter":
        """The nearest adapter within both limits; `result.rounding` tells ranks and errors.

        Args:
            rtol: error allowed in each layer, relative to its norm, in [0, 1). None: no tolerance.
            max_rank: the largest rank that is left, >= 1, whatever the error. None: no limit.

        Raises:
            ValueError: where neither is given, or a value is out of its range.
        """
        check_limits(rtol, max_rank)
        points = {name: (layer.factors, layer.scale) for name, layer in self.layers.items()}
        cut = cut_all(points, rtol, max_rank)
        layers = {n: x.with_factors(cut[n][0], x.scale) for n, x in self.layers.items()}
        report = Truncation(tuple(what for _, what in cut.values()))
        return Adapter(self.stored._replace(layers=layers), report)

    def without_dense(self) -> "Adapter":
        """The low-rank updates alone: no dense parameters, no running statistics."""
        return Adapter(self.stored._replace(dense={}, statistics={}))

    def with_dense(self, other: "Adapter") -> "Adapter":
        """The updates of this one with the dense parameters and statistics of `other`."""
        theirs = other.stored
        return Adapter(self.stored._replace(dense=theirs.dense, statistics=theirs.statistics))

    def to(self, dtype: torch.dtype) -> "Adapter":
        """With factors of that type, which rounds them: torch.float32 or torch.float64.

        Dense tensors keep theirs.
        """
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"`dtype` must be torch.float32 or torch.float64, got {dtype}")
        layers = {}
        for name, layer in self.layers.items():
            point = type(layer.factors)
            converted = point(*(t.to(dtype) for t in layer.factors))
            layers[name] = layer.with_factors(converted, layer.scale)
        return replace(self, stored=self.stored._replace(layers=layers))

    def __repr__(self) -> str:
        return f"<Adapter of {len(self.layers)} layers, {self.parameters:,} parameters in factors>"

    def __str__(self) -> str:
        rows = [
            (name, x.map or "weight", "x".join(map(str, x.factors.shape)), str(self.ranks[name]))
            for name, x in self.layers.items()
        ]
        lines = [(title(g), str(len(g)), *g[0][1:]) for g in grouped(rows)]
        table = aligned([("layer", "count", "kind", "shape", "rank"), *lines], right={1, 3, 4})
        dense = ", ".join(self.dense) or "none"
        return "\n".join([*table, "", f"parameters in factors: {self.parameters:,}",
                          f"dense, trained: {dense}"])  # fmt: skip


def check_adapter(value: object, hint: str) -> None:
    """TypeError for anything else than an adapter."""
    if not isinstance(value, Adapter):
        raise TypeError(f"`adapter` must be an Adapter, got {type(value).__name__}; {hint}")
