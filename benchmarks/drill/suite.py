"""Kill a training again and again, resume it, and compare it with one that nobody touched.

`rankwise train` on small squares, ranks falling, a checkpoint every step, is killed by SIGKILL at
random moments and gone on with, and now and then its newest checkpoint is damaged too; in the end
weights, optimizer, random states, history and results must be those of the uninterrupted run, and
at no time may a file be unreadable. Then files are damaged, and disks are full. The status is 1 if
anything differs.
"""

import json
import random
import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import table  # noqa: E402

from drill.faults import Row, full_disk_in_a_run, in_a_process  # noqa: E402
from drill.figure import draw as draw_figure  # noqa: E402
from drill.job import options as options_of  # noqa: E402
from drill.job import write_squares  # noqa: E402
from drill.kills import Tally, killed_run, reference  # noqa: E402
from drill.texts import flipped_texts  # noqa: E402
from rankwise.report.machine import machine, versions  # noqa: E402

STEPS = 60
FULL_DISKS = 6
FLIPPED_TEXTS = 100


@dataclass(frozen=True)
class Options:
    """Kill a training at random moments, resume it, and compare it with an uninterrupted one."""

    output: Path = Path("runs/drill")
    """Folder of metrics.json, drill.md, drill.png and the runs; emptied first."""
    seed: int = 0
    """Of the training, the moments and the damage."""
    kills: int = 200
    steps: int = STEPS
    """Of the training."""
    save_every: int = 1
    """Steps between two checkpoints."""
    faults: float = 1.0
    """Part of the usual number of injected faults."""


def drill(options: Options) -> dict[str, Any]:
    """All of it; what `metrics.json` holds."""
    torch.set_num_threads(1)
    shutil.rmtree(options.output, ignore_errors=True)
    data = write_squares(options.output / "data")
    whole = options.output / "uninterrupted"
    asked = options_of(
        data, whole, steps=options.steps, save_every=options.save_every, seed=options.seed
    )
    pace = reference(asked, options.output)
    draw, tally, start = random.Random(options.seed), Tally(), time.monotonic()
    while tally.kills < options.kills and not tally.failed:
        run = replace(asked, output=options.output / f"killed-{tally.runs}")
        killed_run(run, whole, tally, most=options.kills, pace=pace, draw=draw)
        print(f"{tally.kills} kills in {tally.runs} runs", flush=True)
    tally.seconds = time.monotonic() - start
    rows = in_a_process(options.output / "faults", options.seed, options.faults)
    disks = max(1, round(options.faults * FULL_DISKS))
    flips = max(1, round(options.faults * FLIPPED_TEXTS))
    rows.append(flipped_texts(asked, options.steps // 2, flips, draw))
    rows.append(full_disk_in_a_run(asked, whole, disks, draw))
    return {
        "kills": {
            **asdict(tally),
            "saving": dict(tally.saving),
            "differences": [d._asdict() for d in tally.differences],
        },
        "faults": [row._asdict() for row in rows],
        "pace": pace._asdict(),
        "passed": passed(tally, rows),
        "options": asdict(options) | {"output": str(options.output)},
        "seed": options.seed,
        "versions": versions(("rankwise", "torch", "safetensors")),
        "machine": machine(),
    }


def passed(tally: Tally, rows: list[Row]) -> bool:
    exact = all(d.worst == 0.0 for d in tally.differences)
    whole = not tally.unreadable and not tally.failed
    return exact and whole and all(row.passed for row in rows)


def report(metrics: dict[str, Any]) -> str:
    kills, differences = metrics["kills"], metrics["kills"]["differences"]
    saving = sum(kills["saving"].values())
    lines = [
        ["", ""],
        ["kills by SIGKILL", f"{kills['kills']}"],
        ["of these, while a file was being written", f"{saving}"],
        ["of these, a checkpoint", f"{kills['saving'].get('a checkpoint', 0)}"],
        ["newest checkpoint damaged as well", f"{kills['damaged']}"],
        ["runs that came to their end", f"{kills['runs']}"],
        ["runs that did not go on", f"{len(kills['failed'])}"],
        ["files that could not be read, at any time", f"{len(kills['unreadable'])}"],
        *(
            [f"largest difference of {name}", f"{max(d[name] for d in differences)}"]
            for name in ("weights", "history", "results")
            if differences
        ),
    ]
    header = ["fault", "tried", "detected, named", "all else as it was"]
    rows = [[r["fault"], *(str(r[k]) for k in ("tried", "named", "unchanged"))]
            for r in metrics["faults"]]  # fmt: skip
    return f"{table(lines)}\n{table([header, *rows])}"


def main(options: Options) -> int:
    metrics = drill(options)
    text = report(metrics)
    (options.output / "drill.md").write_text(text)
    draw_figure(metrics["kills"], options.steps, options.output / "drill.png")
    (options.output / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    print(text)
    for told in (*metrics["kills"]["unreadable"], *metrics["kills"]["failed"]):
        print(told, file=sys.stderr)
    return 0 if metrics["passed"] else 1


if __name__ == "__main__":
    import tyro

    sys.exit(main(tyro.cli(Options)))
