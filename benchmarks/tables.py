"""Records as tables: each method at its chosen rate, paired with rankwise over the seeds."""

import math
import statistics
from collections import defaultdict
from typing import Any

Record = dict[str, Any]
Key = tuple[str, int, float]


def key_of(record: Record) -> Key:
    s = record["setting"]
    return s["method"], s["rank"], s["lr"]


def by_setting(records: list[Record]) -> dict[Key, dict[int, Record]]:
    """Records by method, initial rank and rate, then by seed."""
    groups: dict[Key, dict[int, Record]] = defaultdict(dict)
    for record in records:
        groups[key_of(record)][record["setting"]["seed"]] = record
    return dict(groups)


def chosen(groups: dict[Key, dict[int, Record]], default_lr: float) -> dict[tuple[str, int], Key]:
    """For each method and rank the rate with the lowest validation loss on the first seed.

    rankwise is not tuned: it is at its default rate.
    """
    first = min(seed for group in groups.values() for seed in group)
    best: dict[tuple[str, int], Key] = {}
    for key, group in groups.items():
        method, rank, lr = key
        if method == "rankwise" and lr != default_lr or first not in group:
            continue
        rival = best.get((method, rank))
        if rival is None or _loss(group[first]) < _loss(groups[rival][first]):
            best[method, rank] = key
    return best


def markdown(records: list[Record], *, default_lr: float, default_rank: int) -> str:
    """One row a method and rank; differences are to rankwise, paired by seed."""
    groups = by_setting(records)
    picked = chosen(groups, default_lr)
    ours = groups[picked["rankwise", default_rank]]
    has_accuracy = all("accuracy" in r for r in ours.values())
    header = ["method", "rank", "rate", "seeds", "parameters (mean over steps)"]
    header += ["training loss", "to rankwise", "validation loss", "to rankwise"]
    header += ["accuracy"] * has_accuracy
    rows = [
        _row(key, groups[key], ours, has_accuracy)
        for key in sorted(picked.values(), key=lambda k: (k[0] != "rankwise", k[0].lower(), k[1]))
    ]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


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
        cells.append(_spread([r[measure] for r in runs], ".3f"))
        both = sorted(set(group) & set(ours))
        gaps = [group[s][measure] - ours[s][measure] for s in both]
        cells.append("" if group is ours else _spread(gaps, "+.3f"))
    if has_accuracy:
        cells.append(_spread([100 * r["accuracy"] for r in runs], ".1f"))
    return cells


def _spread(values: list[float], form: str) -> str:
    """Mean and, in brackets, the standard deviation over seeds."""
    if not values or not all(map(math.isfinite, values)):
        return "diverged"
    if len(values) == 1:
        return format(values[0], form)
    return f"{statistics.fmean(values):{form}} ({statistics.stdev(values):.3f})"


def rate_range(
    groups: dict[Key, dict[int, Record]], method: str, rank: int, seed: int, *, within: float
) -> tuple[float, float] | None:
    """Lowest and highest rate whose training loss is within a factor of the best of all methods."""
    curve = rate_curve(groups, method, rank, seed, "train_loss")
    others = [
        loss
        for other in ("rankwise", "LoRA")
        for _, loss in rate_curve(groups, other, rank, seed, "train_loss")
    ]
    good = [lr for lr, loss in curve if loss <= within * min(others)]
    return (min(good), max(good)) if good else None


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


def _loss(record: Record) -> float:
    loss: float = record["eval_loss"]
    return loss if math.isfinite(loss) else math.inf
