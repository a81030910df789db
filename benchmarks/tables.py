"""Records as tables: each method at its chosen rate, paired with rankwise over the seeds."""

import math
import statistics
from collections import defaultdict
from typing import Any, NamedTuple

from methods import Setting

Record = dict[str, Any]


class Key(NamedTuple):
    """What is compared: all seeds of one method, initial rank and rate."""

    method: str
    rank: int
    lr: float


def key_of(record: Record) -> Key:
    s = Setting.from_json(record["setting"])
    return Key(s.label, s.rank, s.lr)


def by_setting(records: list[Record]) -> dict[Key, dict[int, Record]]:
    """Records by method, initial rank and rate, then by seed."""
    groups: dict[Key, dict[int, Record]] = defaultdict(dict)
    for record in records:
        groups[key_of(record)][record["setting"]["seed"]] = record
    return dict(groups)


def chosen(groups: dict[Key, dict[int, Record]], default: Key) -> list[Key]:
    """`default` and, for each peer and rank, its best rate: the lowest mean validation loss.

    Only rates that ran on as many seeds as any are compared. rankwise is not tuned: it is at its
    default rate.
    """
    rates: dict[tuple[str, int], list[Key]] = defaultdict(list)
    for key in groups:
        if not key.method.startswith("rankwise"):
            rates[key[:2]].append(key)
    best = [min(keys, key=lambda k: (-len(groups[k]), _loss(groups[k]))) for keys in rates.values()]
    return [default, *sorted(best, key=lambda k: (k.method.lower(), k.rank))]


def markdown(records: list[Record], default: Key) -> str:
    """One row a method and rank; differences are to rankwise, paired by seed."""
    groups = by_setting(records)
    ours = groups[default]
    has_accuracy = all("accuracy" in r for r in ours.values())
    header = ["method", "rank", "rate", "seeds", "parameters (mean over steps)"]
    header += ["training loss", "to rankwise", "validation loss", "to rankwise"]
    header += ["accuracy"] * has_accuracy
    rows = [_row(key, groups[key], ours, has_accuracy) for key in chosen(groups, default)]
    return table([header, *rows])


def table(lines: list[list[str]]) -> str:
    """Markdown of a header and rows."""
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def initial_ranks(groups: dict[Key, dict[int, Record]], default_lr: float) -> str:
    """What becomes of different initial ranks, by budget and by tolerance."""
    ours = [r for key in groups if key.method.startswith("rankwise") for r in groups[key].values()]
    has_accuracy = all("accuracy" in r for r in ours)
    lines = [["rule", "initial rank", "seeds", "parameters", "validation loss"]]
    lines[0] += ["accuracy"] * has_accuracy
    for key in sorted(groups, key=lambda k: (k.method, k.rank)):
        if key.method.startswith("rankwise") and key.lr == default_lr:
            runs = list(groups[key].values())
            parameters = statistics.fmean(r["parameters"]["end"] for r in runs)
            cells = [f"{parameters / 1e3:,.0f} k", spread([r["eval_loss"] for r in runs], ".3f")]
            if has_accuracy:
                cells.append(spread([100 * r["accuracy"] for r in runs], ".1f"))
            lines.append([key.method, str(key.rank), str(len(runs)), *cells])
    return table(lines)


def _row(
    key: Key, group: dict[int, Record], ours: dict[int, Record], has_accuracy: bool
) -> list[str]:
    method, rank, lr = key
    runs = list(group.values())
    end, mean = (statistics.fmean(r["parameters"][k] for r in runs) for k in ("end", "mean"))
    ranks = [rank for r in runs for rank in r["ranks"].values()]
    shown = f"{rank} -> {min(ranks)}-{max(ranks)}" if ranks else str(rank)
    cells = [method, "-" if method == "full" else shown, f"{lr:g}", str(len(runs))]
    cells.append(f"{end / 1e3:,.0f} k ({mean / 1e3:,.0f} k)")
    for measure in ("train_loss", "eval_loss"):
        cells.append(spread([r[measure] for r in runs], ".3f"))
        both = sorted(set(group) & set(ours))
        gaps = [group[s][measure] - ours[s][measure] for s in both]
        cells.append("" if group is ours else spread(gaps, "+.3f"))
    if has_accuracy:
        cells.append(spread([100 * r["accuracy"] for r in runs], ".1f"))
    return cells


def spread(values: list[float], form: str) -> str:
    """Mean and, in brackets, the standard deviation over seeds."""
    if not values or not all(map(math.isfinite, values)):
        return "diverged"
    if len(values) == 1:
        return format(values[0], form)
    unsigned = form.lstrip("+")
    return f"{statistics.fmean(values):{form}} ({statistics.stdev(values):{unsigned}})"


def rate_curve(
    groups: dict[Key, dict[int, Record]], method: str, rank: int, seed: int, measure: str
) -> list[tuple[float, float]]:
    """Pairs of rate and a measure on one seed; a run that diverged is left out."""
    points = [
        (lr, group[seed][measure])
        for (name, r, lr), group in groups.items()
        if name == method and r == rank and seed in group
    ]
    return sorted(p for p in points if math.isfinite(p[1]))


def _loss(group: dict[int, Record]) -> float:
    loss = statistics.fmean(record["eval_loss"] for record in group.values())
    return loss if math.isfinite(loss) else math.inf
