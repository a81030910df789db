"""Which charts a page has, of the networks of all its runs."""

from collections.abc import Sequence
from math import inf, isfinite, nan
from typing import NamedTuple

from rankwise.report.history import Line
from rankwise.report.page.chart import Chart, Curve
from rankwise.report.page.course import column, seconds_at, smoothed, smoothing_width
from rankwise.report.page.run import Network, Run

GIB, MIB = 2**30, 2**20
WIDE = 20.0
"""Ratio of losses from which on their axis is logarithmic."""
MANY = 4
"""Networks from which on single steps are left out."""


class Named(NamedTuple):
    """A network as the legend names it."""

    name: str
    network: Network
    colour: int

    @property
    def lines(self) -> list[Line]:
        return self.network.lines


def named_networks(runs: Sequence[Run]) -> list[Named]:
    """All that the runs trained, in their order."""
    found: list[Named] = []
    for run in runs:
        for network in run.networks:
            own = network.name or ("low rank" if len(run.networks) > 1 else "")
            parts = [run.name] if len(runs) > 1 else []
            name = ", ".join([*parts, *([own] if own else [])]) or run.name
            found.append(Named(name, network, len(found)))
    return found


def main_charts(networks: Sequence[Named]) -> list[Chart]:
    """Loss over steps and over seconds."""
    if not networks:
        return []
    losses = [y for n in networks for y in _smooth(n) if isfinite(y)]
    log = bool(losses) and min(losses) > 0 and max(losses) / min(losses) > WIDE
    widths = sorted({smoothing_width(len(n.lines)) for n in networks})
    note = f"running mean over {' or '.join(map(str, widths))} steps"
    if len(networks) < MANY:
        note += "; light: each step"
    steps = [curve for n in networks for curve in _losses(n, column(n.lines, "loss")[0], networks)]
    times = [curve for n in networks for curve in _losses(n, seconds_at(n.lines), networks)]
    # Noise first, so that no mean is hidden behind it.
    steps.sort(key=lambda curve: curve.style != "faint")
    times.sort(key=lambda curve: curve.style != "faint")
    found = [Chart("loss", "Loss over steps", note, "step", steps, log=log)]
    if any(curve.xs and curve.xs[-1] > 0 for curve in times):
        found.append(
            Chart(
                "loss-seconds", "Loss over time", "seconds of training", "seconds", times, log=log
            )
        )
    return found


def _smooth(n: Named) -> list[float]:
    return smoothed(column(n.lines, "loss")[1], smoothing_width(len(n.lines)))


def _losses(n: Named, xs: Sequence[float], networks: Sequence[Named]) -> list[Curve]:
    raw = Curve(n.name, xs, column(n.lines, "loss")[1], n.colour, "faint")
    mean = Curve(n.name, xs, _smooth(n), n.colour)
    return [raw, mean] if len(networks) < MANY else [mean]


def more_charts(networks: Sequence[Named]) -> list[Chart]:
    """All others that the histories have numbers for."""
    ranks = [n for n in networks if any(line.get("mean_rank") for line in n.lines)]
    charts = [
        _chart(networks, "parameters", "Parameters", "that train, in use", "parameters",
               from_zero=True, style="steps"),
        _chart(ranks, "rank", "Mean rank", "over all layers", "mean_rank",
               from_zero=True, style="steps"),
        _stationarity(networks),
        _conditions(networks),
        _chart(networks, "lr", "Learning rate", "", "lr", from_zero=True),
        _memory(networks),
        _seconds(networks),
        _chart(networks, "bytes", "Sent in a step", "bytes of factor gradients, of one process",
               "bytes_per_step", from_zero=True, style="steps"),
    ]  # fmt: skip
    return [chart for chart in charts if any(any(map(isfinite, c.ys)) for c in chart.curves)]


def _chart(
    networks: Sequence[Named], key: str, title: str, note: str, name: str, *,
    from_zero: bool = False, style: str = "plain",
) -> Chart:  # fmt: skip
    curves = [Curve(n.name, *column(n.lines, name), n.colour, style) for n in networks]
    return Chart(key, title, note, "step", curves, from_zero=from_zero)


def _stationarity(networks: Sequence[Named]) -> Chart:
    curves = []
    for n in networks:
        steps, norms = column(n.lines, "gradient_norm")
        if len(networks) < MANY:
            curves.append(Curve(n.name, steps, norms, n.colour, "faint"))
        mean = smoothed(norms, smoothing_width(len(n.lines)))
        curves.append(Curve(n.name, steps, mean, n.colour))
    curves.sort(key=lambda curve: curve.style != "faint")
    note = "gradient in the tangent spaces, running mean"
    return Chart("stationarity", "Stationarity", note, "step", curves, log=True)


def _conditions(networks: Sequence[Named]) -> Chart:
    curves = []
    for n in networks:
        told = [line for line in n.lines if line.get("condition")]
        worst = [max(inf if k is None else k for k in line["condition"].values()) for line in told]
        values = [k if isfinite(k) else nan for k in worst]
        curves.append(Curve(n.name, [line["step"] for line in told], values, n.colour))
    note = "largest \u03c3\u2081/\u03c3\u1d63 of all layers; gaps: infinite"
    return Chart("condition", "Condition", note, "step", curves, log=True)


def _memory(networks: Sequence[Named]) -> Chart:
    told = {key: [column(n.lines, key) for n in networks] for key in ("memory", "peak_memory")}
    most = max((y for found in told.values() for _, ys in found for y in ys), default=0.0)
    unit, name = (GIB, "GiB") if most >= 4 * GIB else (MIB, "MiB")
    curves = []
    for key, style in (("memory", "plain"), ("peak_memory", "thin")):
        for n, (steps, values) in zip(networks, told[key], strict=True):
            label = n.name if key == "memory" else f"{n.name}, peak"
            curves.append(Curve(label, steps, [v / unit for v in values], n.colour, style))
    whose = networks[0].network.about.get("machine", {}).get("memory", "") if networks else ""
    note = f"{name} {whose}; thin: the peak so far".replace(" ;", ";")
    return Chart("memory", "Memory", note, "step", curves, from_zero=True)


def _seconds(networks: Sequence[Named]) -> Chart:
    curves = []
    for n in networks:
        steps, seconds = column(n.lines, "seconds")
        milliseconds = [1e3 * second for second in seconds]
        mean = smoothed(milliseconds, smoothing_width(len(n.lines)))
        curves.append(Curve(n.name, steps, mean, n.colour))
    return Chart("seconds", "Time of a step", "milliseconds, running mean", "step", curves,
                 from_zero=True)  # fmt: skip
