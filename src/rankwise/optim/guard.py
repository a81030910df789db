"""What an optimizer does about a training that goes wrong, while nobody is looking."""

from dataclasses import dataclass
from typing import NamedTuple

from rankwise.numerics.given import check_integer, check_number


class Incidents(NamedTuple):
    """What a guard has met, since the optimizer was made or as it was saved."""

    repaired: int = 0
    """Layers whose bases were made orthonormal again, norms whose statistics were put back."""
    detours: int = 0
    """SVDs that did not converge at first, and then did by another route."""
    rewound: int = 0
    """How often training went back to its last good state."""
    bounded: int = 0
    """Examinations that found the ranks of all layers at a bound of the rank rule."""

    def plus(self, more: "Incidents") -> "Incidents":
        """Both together."""
        return Incidents(*(own + new for own, new in zip(self, more, strict=True)))


def met(incidents: Incidents) -> dict[str, int]:
    """Those that there were, by name."""
    return {name: count for name, count in incidents._asdict().items() if count}


@dataclass(frozen=True, kw_only=True)
class Guard:
    """When an optimizer looks at its layers, what is too much, and what it does then.

    A step whose gradient is not finite, or so large that its squares are not, is skipped. Now and
    then all layers are examined, for which the device is waited for: bases that have lost
    their orthonormality are repaired, the weight unchanged. Running statistics of norms that a bad
    batch has made infinite are put back. Where factors, other parameters or moments are not finite,
    a core has exploded, or no step has been possible for long, there is nothing to repair: training
    goes back to where the last examination found all well, or ends with an error. Where ranks stay
    at a bound, so that it is not the layers that decide them, there is a warning.

    Going back restores all that is trained, running statistics and the moments; the count of steps,
    the schedule and the data go on, so that the batches that led astray do not come again.

    Args:
        every: steps between two examinations, >= 1.
        max_defect: `max |Q^T Q - I|` beyond which a basis is repaired, > 0.
        growth: a layer has exploded if its norm is more than so many times both what it was at the
            last examination, that of its frozen weight, and that of a map which preserves the
            variance of its input; > 1.
        patience: so many skipped steps in a row are a training that is stuck, >= 1.
        rewinds: how often training may go back in all, >= 0; with 0 the first trouble is an error.
            More than 0 keeps a copy of all that is trained, and of the moments.
    """

    every: int = 25
    max_defect: float = 1e-4
    growth: float = 10.0
    patience: int = 25
    rewinds: int = 0

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("patience", 1), ("rewinds", 0)):
            check_integer(f"Guard({name}=...)", getattr(self, name))
            if getattr(self, name) < least:
                raise ValueError(
                    f"`Guard({name}=...)` must be at least {least}, got {getattr(self, name)}"
                )
        for name, bound in (("max_defect", 0.0), ("growth", 1.0)):
            check_number(f"Guard({name}=...)", getattr(self, name))
            if not getattr(self, name) > bound:
                raise ValueError(
                    f"`Guard({name}=...)` must be above {bound:g}, got {getattr(self, name)}"
                )
