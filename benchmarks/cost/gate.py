"""Ratios now beside ratios before: what got worse.

Only ratios are compared, for they travel between machines and loads. Lower is better in all.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tables import table

TOLERANCES = {"time": 0.15, "memory": 0.02}
"""By kind: the relative rise that is not called worse. Bytes are counted, times are measured."""
OURS = "rankwise"
BYTES = ("peak", "peak_total", "activations", "state")
Ratios = dict[str, dict[str, float]]
"""By kind, then by what it is of."""


class Change(NamedTuple):
    """One ratio before and now; NaN where it was not measured."""

    kind: str
    name: str
    before: float
    now: float

    @property
    def verdict(self) -> str:
        if math.isnan(self.now):
            return "not measured"
        if math.isnan(self.before):
            return "new"
        tolerance = TOLERANCES[self.kind]
        if self.now > self.before * (1 + tolerance):
            return "worse"
        return "better" if self.now < self.before * (1 - tolerance) else "as before"


def ratios_of(results: Mapping[str, Any]) -> Ratios:
    """Of all contenders of ours in the results of the suite."""
    found: Ratios = {"time": {}, "memory": {}}
    for row in _ours(results.get("layer", [])):
        found["time"][f"{row['case']}: {row['contender']}, to LoRA"] = row["to LoRA"][1]
    for row in _ours(results.get("model", [])):
        name = f"{row['case']}: {row['contender']}"
        found["time"][f"{name}, to LoRA"] = row["to LoRA"][1]
        found["time"][f"{name}, to frozen"] = row["to frozen"]
        for part in BYTES:
            found["memory"][f"{name}, {part} to LoRA"] = row["bytes to LoRA"][part]
    return found


def _ours(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (row for row in rows if row["contender"].startswith(OURS))


def compare(before: Ratios, now: Ratios) -> list[Change]:
    """Every ratio that either has."""
    nan = float("nan")
    return [
        Change(kind, name, before[kind].get(name, nan), now[kind].get(name, nan))
        for kind in TOLERANCES
        for name in {**before[kind], **now[kind]}
    ]


def failures(changes: list[Change]) -> list[Change]:
    """What got worse, and what is no longer measured."""
    return [change for change in changes if change.verdict in ("worse", "not measured")]


def as_table(changes: list[Change]) -> str:
    """Markdown, what fails first."""
    failed = failures(changes)
    ordered = [*failed, *(change for change in changes if change not in failed)]
    lines = [
        [
            c.verdict,
            c.kind,
            c.name,
            f"{c.before:.3f}",
            f"{c.now:.3f}",
            f"{c.now / c.before - 1:+.1%}",
        ]
        for c in ordered
    ]
    return table([["verdict", "kind", "ratio of", "before", "now", "change"], *lines])
