"""What a reader should know before believing a run."""

import re
import statistics
from math import isfinite
from shlex import quote

from rankwise.report.page.course import column
from rankwise.report.page.facts import facts_of, main_network
from rankwise.report.page.layers import at_full, layers_of, size
from rankwise.report.page.run import Network, Run

INCIDENTS = {
    "rewound": "Training went wrong and back to an earlier state",
    "repaired": "Bases of layers had worn and were made orthonormal again",
    "detours": "Singular values were found only by another route",
}
LEAST_STEPS = 20
"""For saying whether a loss fell."""


def notes_of(run: Run) -> list[str]:
    """Sentences; none is good news."""
    notes = [*_incomplete(run)]
    network = main_network(run)
    if network is not None:
        notes += [*_skipped(run, network), *_incidents(network), *_loss(network)]
        notes += _ranks(run, network)
        notes += _old(run, network)
    elif run.command != "attack":
        notes.append("No step was recorded: there are no curves.")
    return notes


def _incomplete(run: Run) -> list[str]:
    if run.complete:
        return []
    network = main_network(run)
    resume = f"`rankwise {run.command} --resume --output {quote(str(run.folder))}`"
    go_on = f"; {resume} goes on with it" if run.command else ""
    if network is None:
        return [f"The run is not complete{go_on}."]
    step = network.lines[-1]["step"]
    asked = run.options.get("steps") or run.options.get("heal_steps")
    of = f" of {asked:,}" if isinstance(asked, int) else ""
    if network.about.get("finished"):
        return ["All steps were taken, but the run stopped before its results were written."]
    return [f"The run is not complete: its record ends after step {step:,}{of}{go_on}."]


def _skipped(run: Run, network: Network) -> list[str]:
    skipped = facts_of(run).skipped
    if not skipped:
        return []
    first = next((line["step"] for line in network.lines if line.get("skipped")), None)
    where = "" if first is None else f", first step {first:,}"
    return [f"{_steps(skipped)} skipped for a gradient that was not finite{where}."]


def _incidents(network: Network) -> list[str]:
    """What the optimizer's guard has met, where it first did."""
    told = [(line["step"], line["incidents"]) for line in network.lines if "incidents" in line]
    last = told[-1][1] if told else {}
    notes = []
    for name, what in INCIDENTS.items():
        if last.get(name):
            first = next(step for step, met in told if met.get(name))
            notes.append(f"{what}: {last[name]:,} in all, first in step {first:,}.")
    return notes


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count:,} steps"


def _loss(network: Network) -> list[str]:
    losses = column(network.lines, "loss")[1]
    finite = [y for y in losses if isfinite(y)]
    notes = []
    if len(finite) < len(losses):
        notes.append(f"The loss was not finite in {_steps(len(losses) - len(finite))}.")
    part = len(finite) // 5
    if len(finite) >= LEAST_STEPS:
        begin, end = statistics.fmean(finite[:part]), statistics.fmean(finite[-part:])
        if end >= begin:
            notes.append(
                f"The loss did not fall: {begin:.4g} on average in the first fifth of the steps, "
                f"{end:.4g} in the last."
            )
    return notes


def _ranks(run: Run, network: Network) -> list[str]:
    layers = layers_of(run, network)
    rule = network.about.get("optimizer", {}).get("rank_rule", "")
    full = sum(map(at_full, layers))
    notes = []
    if full:
        notes.append(
            f"{full} of {len(layers)} layers end at the largest rank that they can have: low rank "
            "saves nothing there."
        )
    cap = re.search(r"max_rank=(\d+)", rule)
    if cap and (pinned := sum(size(layer.end) >= int(cap[1]) for layer in layers)):
        notes.append(
            f"{pinned} of {len(layers)} layers end at the limit max_rank={cap[1]}: they may want "
            "more."
        )
    return notes


def _old(run: Run, network: Network) -> list[str]:
    if any("ranks" in line for line in network.lines):
        return []
    return [
        "The history is of an earlier version: it tells no ranks by layer, no spectra and no "
        "memory, and their charts are left out."
    ]
