"""Axes: where a value is, which values get a tick, and how a number is written."""

from collections.abc import Iterable
from math import ceil, floor, isfinite, log10
from typing import NamedTuple

ROOM = 0.04
"""Part of an axis that is left free beyond the data."""
MANTISSAS = (1, 2, 5)


class Scale(NamedTuple):
    """An axis from `low` to `high`."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """0 at `low`, 1 at `high`; outside beyond them."""
        if self.log:
            value = max(value, 1e-300)
            return log10(value / self.low) / log10(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values, at most about `count`."""
        return _log_ticks(self, count) if self.log else _ticks(self.low, self.high, count)


def linear(values: Iterable[float], *, from_zero: bool = False) -> Scale:
    """An axis for these values, those not finite left out."""
    found = [v for v in values if isfinite(v)] or [0.0]
    low, high = min(found), max(found)
    if from_zero:
        low, high = min(0.0, low), max(0.0, high)
    if high == low:
        low, high = (low, low + 1) if low == 0 else (low - abs(low) / 2, low + abs(low) / 2)
        return Scale(0.0 if from_zero and low > 0 else low, high)
    room = ROOM * (high - low)
    return Scale(low if from_zero and low == 0 else low - room, high + room)


def logarithmic(values: Iterable[float]) -> Scale:
    """An axis for the positive ones of these values."""
    found = [v for v in values if isfinite(v) and v > 0] or [1.0]
    low, high = min(found), max(found)
    if high < 1.02 * low:
        return Scale(low / 2, high * 2, log=True)
    room = (high / low) ** ROOM
    return Scale(low / room, high * room, log=True)


def _ticks(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / count
    power = 10.0 ** floor(log10(rough))
    step = next(m * power for m in (*MANTISSAS, 10) if m * power >= rough)
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [round(i * step, 12 - floor(log10(step))) for i in range(first, last + 1)]


def _log_ticks(scale: Scale, count: int) -> list[float]:
    first, last = floor(log10(scale.low)), ceil(log10(scale.high))
    decades = log10(scale.high / scale.low)
    if decades < 1:
        ticks = [t for t in _ticks(scale.low, scale.high, count) if t > 0]
    elif decades < count / 2:
        ticks = [m * 10.0**power for power in range(first, last + 1) for m in MANTISSAS]
    else:
        every = ceil(decades / count)
        ticks = [10.0**power for power in range(first, last + 1) if power % every == 0]
    return [t for t in ticks if scale.low <= t * (1 + 1e-9) and t <= scale.high * (1 + 1e-9)]


def short(value: float) -> str:
    """As on an axis: `1,200`, `24k`, `3.5M`, `0.05`, `5e-4`."""
    size = abs(value)
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= (unit if unit > 1e3 else 1e4):
            return f"{value / unit:.4g}{name}"
    if size >= 1e3:
        return f"{value:,.0f}"
    if size == 0 or size >= 1e-3:
        return f"{value:.4g}"
    mantissa, _, power = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(power)}"
