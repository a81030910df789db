"""Charts of a run of `rankwise attack`: accuracy over the size of each attack."""

from collections.abc import Sequence
from typing import Any

from rankwise.report.page.chart import Chart, Curve
from rankwise.report.page.run import Run


def attack_charts(runs: Sequence[Run]) -> list[Chart]:
    """One an attack, a curve a model; certified accuracies where there are some."""
    charts: list[Chart] = []
    for run in runs:
        told = run.metrics if run.command == "attack" else None
        models: dict[str, Any] = (told or {}).get("models") or {}
        titles = dict.fromkeys(title for m in models.values() for title in m.get("attacks", {}))
        found = {t: {n: m["attacks"].get(t) for n, m in models.items()} for t in titles}
        found["Certified, l2"] = {
            name: [[0.0, m["accuracy"]], *m["certified"]] if m.get("certified") else None
            for name, m in models.items()
        }
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        for title, pairs in found.items():
            curves = [
                Curve(name, [eps for eps, _ in own], [100 * a for _, a in own], colour)
                for colour, (name, own) in enumerate(pairs.items())
                if own
            ]
            if curves:
                key = f"attack-{len(charts)}"
                charts.append(Chart(key, prefix + title, "accuracy, %", "eps", curves,
                                    from_zero=True))  # fmt: skip
    return charts
