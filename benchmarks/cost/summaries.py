"""Many times as few numbers: quartiles, ratios within rounds, exponents of growth."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Quartiles(NamedTuple):
    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def quartiles(values: Sequence[float]) -> Quartiles:
    """The quartiles of a sample, its least and largest value being its ends."""
    if len(values) == 1:
        return Quartiles(*values, *values, *values)
    return Quartiles(*statistics.quantiles(values, n=4, method="inclusive"))


Rounds = Mapping[int, float]
"""Seconds by round: a contender may sit rounds out."""


def ratios(own: Rounds, other: Rounds) -> list[float]:
    """`own / other` in each round that both took part in."""
    return [own[i] / other[i] for i in sorted(set(own) & set(other))]


def ratio_of_sums(own: Rounds, other: Rounds) -> float:
    """What `own` took of the time of `other`, in the rounds that both took part in."""
    both = set(own) & set(other)
    return sum(own[i] for i in both) / sum(other[i] for i in both)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The `p` of `value ~ size^p`: the slope of least squares through the logarithms."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    return statistics.linear_regression(x, y).slope
