"""The results of the suite as tables."""

from collections.abc import Iterator, Mapping
from typing import Any

from tables import table

from cost.summaries import Quartiles

MIB = 2**20
NEVER = "not reached"
Row = Mapping[str, Any]
Results = Mapping[str, Any]


def report(results: Results) -> str:
    """Markdown: the machine, then a table for each level that was measured."""
    parts = [f"# What low rank costs\n\n{_machine(results['machine'])}\n"]
    tables = {
        "layer": ("Layers: forward and backward", _layers),
        "geometry": ("Geometry of one layer", _geometry),
        "model": ("Models: time of a step", _steps),
        "training": ("Runs: until LoRA's end loss", _runs),
        "scratch": ("From scratch: until an accuracy", _scratch),
    }
    for level, (title, rows) in tables.items():
        if level in results:
            parts.append(f"## {title}\n\n{table(list(rows(results[level])))}")
        if level == "model" and level in results:
            parts.append(f"## Models: bytes\n\n{table(list(_bytes(results[level])))}")
    return "\n".join(parts)


def _machine(machine: Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores, "
        f"{machine['device']}; {versions}; {machine['date']}, load {machine['load']:.1f}."
    )


def _layers(rows: list[Row]) -> Iterator[list[str]]:
    yield ["layer", "contender", "ms", "to LoRA", "saved, MiB"]
    for row in rows:
        yield [
            row["case"],
            row["contender"],
            f"{1e3 * row['seconds']:.3g}",
            str(Quartiles(*row["to LoRA"])),
            f"{row['saved bytes'] / MIB:.2f}",
        ]


def _geometry(found: Row) -> Iterator[list[str]]:
    yield ["over", "at", "ms beyond AdamW", "exponent", "of the last three"]
    for what, other in (("size", "rank"), ("rank", "size")):
        times = ", ".join(f"{at}: {1e3 * s:.3g}" for at, s in found[f"by {what}"].items())
        powers = found["exponents"][what]
        cells = [number(powers[of]) for of in ("of all", "of the last")]
        yield [what, f"{other} {found[f'at {other}']}", times, *cells]


def _steps(rows: list[Row]) -> Iterator[list[str]]:
    yield ["case", "contender", "s", "forward", "backward", "optimizer", "to LoRA", "whole run",
           "steady", "overhead, to LoRA's", "geometry"]  # fmt: skip
    for row in rows:
        phases = (row["phases"][phase] for phase in ("forward", "backward", "optimizer"))
        yield [
            row["case"],
            row["contender"],
            f"{row['seconds']:.3g}",
            *(f"{seconds:.3g}" for seconds in phases),
            str(Quartiles(*row["to LoRA"])),
            f"{row['to LoRA, whole run']:.2f}",
            number(row["to LoRA, steady"]),
            number(row["overhead"]),
            f"{row['geometry']:.1%}" if row["contender"].startswith("rankwise") else "",
        ]


def _bytes(rows: list[Row]) -> Iterator[list[str]]:
    yield ["case", "contender", "peak above the weights, MiB", "to LoRA", "peak, MiB", "to LoRA",
           "peak after the run, MiB", "activations, MiB", "to LoRA", "optimizer, MiB",
           "gradients, MiB", "trained, k"]  # fmt: skip
    for row in rows:
        found, ratio = row["bytes"], row["bytes to LoRA"]
        yield [
            row["case"],
            row["contender"],
            *_with_ratio(found, ratio, "peak"),
            *_with_ratio(found, ratio, "peak_total"),
            f"{row['bytes after']['peak_total'] / MIB:.1f}",
            *_with_ratio(found, ratio, "activations"),
            f"{found['state'] / MIB:.2f}",
            f"{found['gradients'] / MIB:.2f}",
            f"{found['trained'] / 1e3:,.0f}",
        ]


def _with_ratio(found: Row, ratio: Row, part: str) -> tuple[str, str]:
    return f"{found[part] / MIB:.1f}", f"{ratio[part]:.3f}"


def _runs(rows: list[Row]) -> Iterator[list[str]]:
    yield ["task", "run", "steps", "share of LoRA's time", "training loss", "validation loss"]
    for row in rows:
        seconds, lora = row["seconds a step"], row["LoRA"]
        named = {f"LoRA, rate {row['rate']:g}": (lora, 1.0)}
        for share, run in row["rankwise"].items():
            ratio = seconds["rankwise"] / seconds["LoRA"]
            named[f"rankwise, {share} of the steps"] = run, run["steps"] / lora["steps"] * ratio
        for name, (run, share) in named.items():
            losses = [f"{run[m]:.4f}" for m in ("train_loss", "eval_loss")]
            yield [row["task"], name, str(run["steps"]), f"{share:.2f}", *losses]
        for measure, share in row["reaches"].items():
            yield [row["task"], f"LoRA's end loss ({measure})", "", number(share, NEVER), "", ""]


def _scratch(rows: list[Row]) -> Iterator[list[str]]:
    yield ["width", "contender", "accuracy", "steps", "s", "to the fastest dense", "s a step"]
    for row in rows:
        dense = [s for name, s in row["seconds"].items() if name.startswith("dense") and s]
        for name, seconds in row["seconds"].items():
            steps, spent, _ = row["courses"][name][-1]
            ratio = seconds / min(dense) if seconds and dense else None
            yield [str(row["width"]), name, f"{row['target']:.0%}", str(steps),
                   number(seconds, NEVER), number(ratio), f"{spent / steps:.3g}"]  # fmt: skip


def number(value: float | None, otherwise: str = "") -> str:
    """Two decimals, or what stands where there is no number."""
    return otherwise if value is None else f"{value:.2f}"
