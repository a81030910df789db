"""Darcy flow in pictures: errors over sizes, and the fields of one flow."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STYLES = {
    "dense": ("#444444", "D", "dense"),
    "rankwise": ("#0072b2", "o", "low rank, from scratch"),
    "narrower": ("#d55e00", "s", "dense, fewer hidden units"),
    "dense, cut": ("#009e73", "^", "dense, cut by SVD to these ranks"),
}
Field = list[list[float]]


def draw(results: Mapping[str, Mapping[float, list[dict[str, Any]]]], path: Path) -> None:
    """Write a PNG of held-out errors, with their deviation over seeds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(7, 4.5), layout="constrained", dpi=130)
    axes: Any = figure.subplots()
    for name, parts in results.items():
        colour, marker, label = STYLES[name]
        errors = [[100 * r["eval_loss"] for r in records] for records in parts.values()]
        held = [statistics.fmean(r["parameters"]["end"] for r in rs) for rs in parts.values()]
        mean = [statistics.fmean(e) for e in errors]
        spread = [statistics.stdev(e) if len(e) > 1 else 0.0 for e in errors]
        axes.errorbar(held, mean, spread, color=colour, marker=marker, capsize=3, label=label)
        if name == "dense":
            axes.axhline(mean[0], color=colour, linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_yticks([10, 15, 20, 30, 50])
    axes.set_ylim(10, 50)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks([2e4, 5e4, 1e5, 2e5, 5e5], ["20 k", "50 k", "100 k", "200 k", "500 k"])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("weights")
    axes.set_ylabel("relative L2 error on 200 held-out flows, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path)


def draw_fields(a: Field, u: Field, guesses: Mapping[str, Field], path: Path) -> None:
    """Write a PNG: the coefficient and the solution, then guesses over their errors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.2), layout="constrained", dpi=130)
    panels: Any = figure.subplots(2, 3)
    errors = {
        name: [[g - t for g, t in zip(*rows, strict=True)] for rows in zip(guess, u, strict=True)]
        for name, guess in guesses.items()
    }
    highest = max(value for field in (u, *guesses.values()) for row in field for value in row)
    largest = max(abs(value) for field in errors.values() for row in field for value in row)
    panels[0, 0].imshow(a, cmap="gray", vmin=-3, vmax=1)
    panels[0, 0].set_title("coefficient a (light: high)")
    panels[1, 0].imshow(u, cmap="viridis", vmin=0, vmax=highest)
    panels[1, 0].set_title("solution u")
    for column, (name, guess) in enumerate(guesses.items(), start=1):
        solution = panels[0, column].imshow(guess, cmap="viridis", vmin=0, vmax=highest)
        panels[0, column].set_title(f"u, {name}")
        error = panels[1, column].imshow(errors[name], cmap="RdBu", vmin=-largest, vmax=largest)
        panels[1, column].set_title(f"error, {name}")
    figure.colorbar(solution, ax=panels[0, 2])
    figure.colorbar(error, ax=panels[1, 2])
    for panel in panels.flat:
        panel.set_xticks([])
        panel.set_yticks([])
    figure.savefig(path)
