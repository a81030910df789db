"""FeDLRT and what it is compared with on Fashion-MNIST dealt out unevenly; one command.

Runs `rankwise federate` with every contender for each seed, at its defaults, which were chosen on
seed 0 as `docs/federated.md` says. Writes the table into that page, and `docs/federate.png`, the
rounds of the first seed.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tables import spread, table

from rankwise.recipes.federate import federate
from rankwise.recipes.federate_course import ROUNDS
from rankwise.recipes.federate_options import FederateOptions
from rankwise.recipes.folder import METRICS, OPTIONS
from rankwise.recipes.history import Watcher
from rankwise.report.federate_figure import draw_federation
from rankwise.report.history import read_history

ORDER = ("fedavg", "full", "simplified", "none", "factor-average")
RESULTS = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- end of results -->)", re.DOTALL)

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Train with every contender, and compare by seed."""

    output: Path = Path("runs/federated")
    """Folder of the runs; those that are finished are not repeated."""
    seeds: tuple[int, ...] = (0, 1, 2)
    docs: Path = Path("docs")


def main(options: Options) -> None:
    runs = [metrics_of(options, seed) for seed in options.seeds]
    text = report(runs)
    page = options.docs / "federated.md"
    page.write_text(RESULTS.sub(lambda _: text, page.read_text()))
    first = options.output / f"seed-{options.seeds[0]}"
    rounds = {name: read_history(first / name / ROUNDS) for name in runs[0]["results"]}
    draw_federation(runs[0], rounds, options.docs / "federate.png")
    print(text)


def metrics_of(options: Options, seed: int) -> Metrics:
    """Of a finished run, or of one that is run or gone on with now."""
    folder = options.output / f"seed-{seed}"
    if not (folder / METRICS).exists():
        beside = tuple(name for name in ORDER if name != "full")
        settings = FederateOptions(compare=beside, seed=seed, output=folder, threads=1)
        if (folder / OPTIONS).exists():
            settings = FederateOptions(output=folder, resume=True, threads=1)
        watcher = Watcher(lambda message: print(seed, message, flush=True), lambda line: None)
        federate(settings, watcher)
    metrics: Metrics = json.loads((folder / METRICS).read_text())
    return metrics


def report(runs: list[Metrics]) -> str:
    """Accuracies in percent; in brackets the deviation over seeds, of the differences by seed."""
    lines = [["method", "accuracy", "to FedAvg", "test loss", "parameters", "MB sent",
              "of FedAvg's bytes", "bytes until FedAvg's accuracy"]]  # fmt: skip
    for name in ORDER:
        own = [run["results"][name] for run in runs]
        gaps = [100 * (run["results"][name]["accuracy"] - run["target"]) for run in runs]
        whole = [run["results"]["fedavg"]["bytes"] for run in runs]
        until = [
            None if m["reached"] is None else m["reached"]["bytes"] / total
            for m, total in zip(own, whole, strict=True)
        ]
        lines.append([
            own[0]["title"],
            spread([100 * m["accuracy"] for m in own], ".2f"),
            "" if name == "fedavg" else spread(gaps, "+.2f"),
            spread([m["loss"] for m in own], ".3f"),
            f"{own[0]['parameters']:,}",
            f"{own[0]['bytes'] / 1e6:,.1f}",
            f"{own[0]['share']:.1%}",
            ", ".join("never" if share is None else f"{share:.1%}" for share in until),
        ])  # fmt: skip
    return table(lines)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
