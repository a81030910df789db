"""Linear combinations of adapters: of the matrices that they add, in factored form."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rankwise.io.stored import Stored, StoredLayer, a
from rankwise.numerics.factors import Factors
from rankwise.numerics.fingerprint import Likeness, likeness
from rankwise.numerics.rounding import weighted_sum

SUM = "a sum of adapters"
Terms = Sequence[tuple[float, Stored]]
Combine = Callable[[str, list[Tensor]], Tensor]


def linear_combination(terms: Terms, combine: Combine | None = None) -> Stored:
    """`sum_i c_i a_i`; `combine` makes one dense tensor of several, by default only equal ones.

    Raises ValueError for layers that are no adapters of the same map, and for dense tensors that
    differ or are not in all terms.
    """
    names = dict.fromkeys(name for _, state in terms for name in state.layers)
    layers = {name: _sum(name, terms) for name in names}
    combine = combine or _equal
    dense = _combined([state.dense for _, state in terms], combine)
    statistics = _combined([state.statistics for _, state in terms], combine)
    frozen = _combined([state.frozen for _, state in terms if state.frozen], _equal)
    return Stored(SUM, layers, dense, statistics, frozen, all(s.foreign for _, s in terms))


def _sum(name: str, terms: Terms) -> StoredLayer:
    present = [(c, state.layers[name]) for c, state in terms if name in state.layers]
    first = present[0][1]
    device = first.factors.U.device
    matrices = []
    for c, layer in present:
        if not isinstance(layer.factors, Factors):
            raise ValueError(
                f"layer {name!r} is a Tucker kernel, of which there is no sum in factored form: "
                "add the kernels, `layer.kernel()`"
            )
        _check_alike(name, first, layer)
        f = Factors(*(t.to(device) for t in layer.factors))
        matrices.append((c * layer.scale / first.scale, f))
    if not first.has_base and len(present) < len(terms):
        raise ValueError(
            f"layer {name!r} is no adapter but a whole weight in factors, and is missing in one of "
            "the terms"
        )
    total = first.with_factors(weighted_sum(matrices), first.scale)
    known = (layer.fingerprint for _, layer in present if layer.fingerprint is not None)
    return total._replace(fingerprint=next(known, None))


def _check_alike(name: str, first: StoredLayer, other: StoredLayer) -> None:
    one, two = ((x.factors.shape, x.map, x.kernel_size, x.has_base) for x in (first, other))
    if one != two:
        raise ValueError(
            f"layer {name!r} is {_told(first)} in one adapter and {_told(other)} in another: they "
            "are of different models"
        )
    mine, theirs = first.fingerprint, other.fingerprint
    if mine is not None and theirs is not None and likeness(mine, theirs) is Likeness.OTHER:
        raise ValueError(
            f"layer {name!r} has another frozen weight in one adapter than in another: a sum of "
            "adapters of different base models means nothing"
        )


def _told(layer: StoredLayer) -> str:
    m, n = layer.factors.shape
    kernel = "" if layer.kernel_size is None else f", kernel {layer.kernel_size}"
    what = a(layer.map) if layer.map else "a weight"
    return f"{what} of shape ({m}, {n}){kernel}{'' if layer.has_base else ', without a base'}"


def _combined(parts: Sequence[Mapping[str, Tensor]], combine: Combine) -> dict[str, Tensor]:
    names = dict.fromkeys(name for part in parts for name in part)
    for name in names:
        if any(name not in part for part in parts):
            raise ValueError(
                f"{name!r} is in one adapter only. It is a value, not an update, and counts as no "
                f"zero: {CHOICES}"
            )
    return {
        name: combine(name, [part[name].to(parts[0][name].device) for part in parts])
        for name in names
    }


CHOICES = (
    "`a.without_dense()` leaves such tensors out, `a.with_dense(b)` takes them from `b`, and "
    "`rankwise.adapters.mean([a, b])` averages them"
)


def _equal(name: str, values: list[Tensor]) -> Tensor:
    if not all(torch.equal(values[0], value) for value in values[1:]):
        raise ValueError(
            f"{name!r} differs between the adapters. It is a value, not an update, and a sum of "
            f"values means nothing: {CHOICES}"
        )
    return values[0]
