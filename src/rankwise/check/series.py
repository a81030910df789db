"""Did a noisy series fall? Means of its ends, against the noise between neighbours."""

import math
from collections.abc import Sequence
from typing import NamedTuple

FEWEST = 20
"""Steps below which a series tells nothing."""
SHARE = 5
"""Start and end are the first and the last fifth."""
CERTAIN = 2.5
"""Standard errors beyond which a change is not noise."""


class Trend(NamedTuple):
    """Means of the two ends, and the standard error of their difference."""

    start: float
    end: float
    error: float

    @property
    def fell(self) -> bool:
        return self.start - self.end > CERTAIN * self.error

    @property
    def rose(self) -> bool:
        return self.end - self.start > CERTAIN * self.error

    def __str__(self) -> str:
        return f"{self.start:.4g} at the start, {self.end:.4g} in the end"


def trend(values: Sequence[float]) -> Trend | None:
    """None for fewer than `FEWEST` values, or where one is not finite.

    The variance is half the mean square of the differences of neighbours (von Neumann, 1941), on
    which a slow course of the series has no part.
    """
    if len(values) < FEWEST or not all(map(math.isfinite, values)):
        return None
    width = len(values) // SHARE
    steps = [(b - a) ** 2 for a, b in zip(values, values[1:], strict=False)]
    variance = math.fsum(steps) / len(steps) / 2
    start, end = (math.fsum(part) / width for part in (values[:width], values[-width:]))
    return Trend(start, end, math.sqrt(2 * variance / width))
