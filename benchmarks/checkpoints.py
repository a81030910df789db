"""Validation loss along a run on the language model: rankwise against LoRA of rank 8.

One number of each is searched on the first seed, by the mean over the checkpoints: LoRA's rate, and
the longest step of rankwise, which is also shown at its default.
"""

import statistics
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune import ours
from methods import Setting
from pool import Pool
from tables import table

RATES = (1e-3, 2e-3, 4e-3)
MAX_STEPS = (7e-4, 1e-3, 1.4e-3, 4e-3)
"""Beside the default, 2e-3."""
LORA_RANK = 8


@dataclass(frozen=True)
class Options:
    """Compare checkpoints on the language model."""

    output: Path = Path("runs/checkpoints")
    """Folder of the records and the table."""
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 50
    bfloat16: bool = True
    """Products in bfloat16 (autocast), for both methods alike."""
    workers: int = 2


def settings_of(options: Options) -> list[list[Setting]]:
    """What runs on all seeds, and the rest of the search, which runs on the first."""
    first, steps = options.seeds[0], options.steps
    default = ours("language", steps, first)
    longest = [replace(default, optimizer=(("max_step", m),)) for m in MAX_STEPS]
    lora = [Setting("LoRA", LORA_RANK, lr, first, steps) for lr in RATES]
    return [[default, longest[1], *lora[1:]], [lora[0], longest[0], *longest[2:]]]


def main(options: Options) -> None:
    pool = Pool(options.output, "language", options.bfloat16, options.workers)
    compared, searched = settings_of(options)
    runs = [replace(setting, seed=seed) for seed in options.seeds for setting in compared]
    pool.run([*runs, *searched])
    text = along([pool.record(run) for run in [*runs, *searched]])
    (options.output / "checkpoints.md").write_text(text)
    print(text)


def along(records: list[dict[str, Any]]) -> str:
    """A row for each setting: mean (and deviation) over seeds of the loss at each checkpoint."""
    groups: dict[Setting, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        groups[replace(Setting.from_json(record["setting"]), seed=0)].append(record)
    steps = [checkpoint["step"] for checkpoint in records[-1]["checkpoints"][1:]]
    header = ["method", "rank", "rate", "seeds", "parameters", *map(str, steps)]
    return table([header, *(_row(s, of_seeds, steps) for s, of_seeds in groups.items())])


def _row(setting: Setting, records: list[dict[str, Any]], steps: list[int]) -> list[str]:
    first, last = (records[0]["parameters"][when] for when in ("start", "end"))
    size = f"{first / 1e3:,.0f} k" + (f" to {last / 1e3:,.0f} k" if last != first else "")
    cells = [setting.label, str(setting.rank), f"{setting.lr:g}", str(len(records)), size]
    for step in steps:
        losses = [c["loss"] for r in records for c in r["checkpoints"] if c["step"] == step]
        spread = f" ({statistics.stdev(losses):.3f})" if len(losses) > 1 else ""
        cells.append(f"{statistics.fmean(losses):.3f}{spread}")
    return cells


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
