"""Whether the frozen weights under the adapters are those that the adapters were trained on."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from rankwise.check.finding import Finding, fault, fine, some, warning
from rankwise.distributed.sharded import whole
from rankwise.nn.low_rank import low_rank_layers
from rankwise.numerics.fingerprint import (
    Fingerprint,
    Likeness,
    difference,
    fingerprint,
    likeness,
)


class Comparison(NamedTuple):
    """Bases of one model against those of another, layer by layer."""

    other: dict[str, float]
    """Relative difference of the layers with another weight."""
    rounded: tuple[str, ...]
    """Layers with the same weight in another precision."""
    unknown: tuple[str, ...]
    """Layers of which one side has no fingerprint: quantised, or of an older file."""
    compared: int

    def __str__(self) -> str:
        worst = max(self.other.values(), default=0.0)
        return (
            f"{len(self.other)} of {self.compared} layers have another frozen weight, by up to "
            f"{100 * worst:.3g} %: {some(self.other)}"
        )


def fingerprints(model: nn.Module) -> dict[str, Fingerprint | None]:
    """A fingerprint of the frozen weight under each adapter, by the name of its layer.

    Taken right after `adapt_` and given to `examine(base=...)` later, it tells whether the base has
    stayed what it was. None for a weight that cannot be compared, such as a quantised one. Weights
    that FSDP2 has sharded are gathered, one at a time: then call it on all processes.
    """
    return {
        name: None if layer.frozen is None else fingerprint(whole(layer.frozen))
        for name, layer in low_rank_layers(model).items()
        if layer.base is not None
    }


def compared(
    before: Mapping[str, Fingerprint | None], now: Mapping[str, Fingerprint | None]
) -> Comparison:
    """The layers that both have."""
    pairs = {name: (mark, now[name]) for name, mark in before.items() if name in now}
    known = {name: (a, b) for name, (a, b) in pairs.items() if a is not None and b is not None}
    kinds = {name: likeness(*pair) for name, pair in known.items()}
    return Comparison(
        {n: difference(*known[n]) for n, kind in kinds.items() if kind is Likeness.OTHER},
        tuple(n for n, kind in kinds.items() if kind is Likeness.ROUNDED),
        tuple(n for n in pairs if n not in known),
        len(pairs),
    )


def base_finding(comparison: Comparison) -> Finding:
    """What a comparison means for whoever goes on with the adapter."""
    name, count = "base", comparison.compared
    if comparison.other:
        return fault(
            name,
            str(comparison),
            "load the model that the adapter was trained on; nothing but the adapters may change "
            "while it trains",
        )
    if count == 0 or len(comparison.unknown) == count:
        return fine(name, "not comparable: quantised, or the file has no fingerprints")
    if comparison.rounded:
        return warning(
            name,
            f"the same model in another precision: {len(comparison.rounded)} of {count} layers",
            "nothing, if rounding is what you want; else load it in the type of the training",
        )
    unknown = f", {len(comparison.unknown)} not comparable" if comparison.unknown else ""
    return fine(name, f"the frozen weights are those of the training ({count} layers{unknown})")
