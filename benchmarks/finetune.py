"""`make bench`: rankwise against its peers on the demo's task and on a language model.

Every run is a process of its own with one thread; `--workers` of them at a time. Records are kept
in `--output`, so that an interrupted benchmark goes on where it stopped. First each method's rate
is chosen on seed 0 over the same grid, by validation loss; then the other seeds run at that rate.
rankwise runs at its default rate, the same everywhere, and is not tuned.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from figures import draw
from methods import Setting
from results import read_records, record_path
from tables import by_setting, markdown, rate_range

from rankwise.optim.optimizer import DEFAULT_LR

GRID = (5e-4, 1e-3, 2e-3, 4e-3)
FULL_GRID = (3e-5, 1e-4, 3e-4, 1e-3)
PEERS = ("LoRA", "rsLoRA", "DoRA", "PiSSA", "AdaLoRA", "full")
LORA_RANKS = (2, 4, 8)
INITIAL_RANK = 8
RATE_RANGE = (3e-5, 1e-4, 3e-4, 3e-3, 1e-2, 3e-2, 1e-1)
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Options:
    """Compare rankwise with its peers."""

    output: Path = Path("runs/bench")
    """Folder of the records, tables and figures."""
    task: str = "reviews"
    """reviews or language."""
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int | None = None
    """Steps of a run; default 150 on the reviews, 50 on the language model."""
    peers: tuple[str, ...] = PEERS
    bfloat16: bool = True
    """Products in bfloat16 (autocast), for all methods alike."""
    workers: int = 2
    ranges: bool = True
    """Also the range of rates and of initial ranks."""


def ours(steps: int, seed: int, *, lr: float = DEFAULT_LR, rank: int = INITIAL_RANK) -> Setting:
    """rankwise as it comes: default rate, and the budget that the command line takes by default."""
    return Setting("rankwise", rank, lr, seed, steps, mean_rank=INITIAL_RANK / 2)


def main(options: Options) -> None:
    steps = options.steps or {"reviews": 150, "language": 50}[options.task]
    first = options.seeds[0]
    run_all(options, [ours(steps, seed) for seed in options.seeds])
    for method in options.peers:
        ranks = LORA_RANKS if method == "LoRA" and options.task == "reviews" else (8,)
        grid = FULL_GRID if method == "full" else GRID
        for rank in ranks:
            trials = [Setting(method, rank, lr, first, steps) for lr in grid]
            run_all(options, trials)
            best = min(trials, key=lambda s: evaluation_loss(options, s))
            run_all(options, [replace(best, seed=seed) for seed in options.seeds])
    if options.ranges:
        run_all(options, [ours(steps, first, lr=lr) for lr in RATE_RANGE])
        run_all(options, [Setting("LoRA", 8, lr, first, steps) for lr in RATE_RANGE])
        run_all(options, [ours(steps, s, rank=r) for r in (2, 32) for s in options.seeds])
    report(options)


def evaluation_loss(options: Options, setting: Setting) -> float:
    path = record_path(options.output, options.task, setting, options.bfloat16)
    loss: float = json.loads(path.read_text())["eval_loss"]
    return loss if loss == loss else float("inf")


def run_all(options: Options, settings: Iterable[Setting]) -> None:
    """Run what has no record yet."""
    missing = [
        s
        for s in dict.fromkeys(settings)
        if not record_path(options.output, options.task, s, options.bfloat16).exists()
    ]
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(lambda s: run_one(options, s), missing))


def run_one(options: Options, setting: Setting) -> None:
    path = record_path(options.output, options.task, setting, options.bfloat16)
    order = {
        "task": options.task,
        "setting": asdict(setting),
        "bfloat16": options.bfloat16,
        "path": str(path),
    }
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command: Sequence[str] = (sys.executable, str(HERE / "one_run.py"), json.dumps(order))
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    record = json.loads(path.read_text())
    print(
        f"{setting.method:10s} r={setting.rank:<3d} lr={setting.lr:<7g} seed={setting.seed}  "
        f"train {record['train_loss']:.4f}  validation {record['eval_loss']:.4f}  "
        f"parameters {record['parameters']['end']:,}",
        flush=True,
    )


def report(options: Options) -> None:
    """Write table and picture of all records of the task."""
    records = [
        r
        for r in read_records(options.output)
        if r["task"] == options.task and r["bfloat16"] == options.bfloat16
    ]
    default = {"default_lr": DEFAULT_LR, "default_rank": INITIAL_RANK}
    table = markdown(records, **default)
    (options.output / f"{options.task}.md").write_text(table)
    draw(records, options.output / f"{options.task}.png", **default)
    print(table)
    for method in ("rankwise", "LoRA"):
        found = rate_range(by_setting(records), method, INITIAL_RANK, options.seeds[0], within=1.05)
        print(f"{method}: training loss within 5 % of the best at rates {found}")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
