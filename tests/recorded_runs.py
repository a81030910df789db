"""Folders of runs as the recorder writes them, with numbers of one's choice."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from math import exp
from pathlib import Path
from types import MappingProxyType

NAMES = ["encoder.layer.0.query", "encoder.layer.0.value", "encoder.layer.1.query"]
HOSTILE = [
    "</script><script>document.title = 'broken'</script>",
    "a & <b>b</b>",
    "<!-- \" ' --> {{ 7 * 7 }}",
]
FULL = 64
NOTHING: Mapping = MappingProxyType({})


def shrinking(step: int) -> list[int]:
    """Ranks of three layers."""
    return [16 - step // 10, 16 if step < 30 else 5, 16 - step // 20]


def history(
    steps: int = 60,
    ranks: Callable[[int], list] = shrinking,
    seed: int = 0,
    details: int = 25,
) -> list[dict]:
    """Lines with every field; one step is skipped."""
    draw = random.Random(seed)
    lines: list[dict] = []
    now = None
    for step in range(1, steps + 1):
        own = ranks(step)
        several = [r for rank in own for r in (rank if isinstance(rank, list) else [rank])]
        line = {
            "step": step,
            "loss": 2 * exp(-3 * step / steps) + 0.1 * draw.random(),
            "lr": 1e-3 * (1 - step / steps),
            "mean_rank": sum(several) / len(several),
            "parameters": 100 * sum(several),
            "gradient_norm": exp(-step / steps) * (1 + 0.1 * draw.random()),
            "seconds": 0.1 + 0.01 * draw.random(),
        }
        if own != now:
            line["ranks"] = now = own
        if step == 7:
            line["skipped"] = 1
        if step in (1, steps) or step % details == 0:
            line["memory"], line["peak_memory"] = 5e8 + step, 6e8 + step
            line["condition"] = {f"layer {i}": 2.0 + draw.random() for i in range(len(own))}
            sizes = [rank[0] if isinstance(rank, list) else rank for rank in own]
            line["spectra"] = [[round(exp(-i / 5), 5) for i in range(size)] for size in sizes]
        lines.append(line)
    return lines


def write_run(
    folder: Path,
    *,
    lines: Sequence[dict] | None = None,
    names: Sequence[str] = tuple(NAMES),
    metrics: Mapping | None = NOTHING,
    about: Mapping | None = NOTHING,
    seed: int = 0,
) -> Path:
    """A folder with a history, `run.json` unless `about` is None, and metrics unless None."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = history(seed=seed) if lines is None else lines
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if about is not None:
        first = next((line["ranks"] for line in lines if "ranks" in line), [])
        layers = [
            {"name": name, "kind": "LowRankLinear", "shape": [FULL, FULL], "kernel": None,
             "full": [FULL, FULL] if isinstance(rank, list) else [FULL], "adapter": False}
            for name, rank in zip(names, first, strict=True)
        ]  # fmt: skip
        found = {
            "started": "2026-01-01T00:00:00+00:00", "finished": metrics is not None, "every": 25,
            "layers": layers, "optimizer": {"rule": "Adam()", "rank_rule": "FixedRank()"},
            "groups": [{"tensors": 9, "weight_decay": 0.0}], "versions": {"torch": "2.0"},
            "machine": {"device": "CPU", "cores": 2},
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(found | dict(about)))
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(dict(metrics)))
    return folder
