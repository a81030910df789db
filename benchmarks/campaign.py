"""The search behind rankwise's defaults: one choice changed at a time, on the demo's task.

Everything that is not named in a row is the default: a start at rank 8, a budget of half of its
parameters, `Adam()`, `DEFAULT_LR`. Rows of other initial ranks end at the same budget. The table
shows differences to the default, paired by seed.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from finetune import ours
from methods import Setting
from pool import Pool
from tables import spread, table

from rankwise.optim.trust import DEFAULT_LR

STEPS = 150


@dataclass(frozen=True)
class Options:
    """Measure every variation of the defaults."""

    output: Path = Path("runs/campaign")
    """Folder of the records and the table."""
    seeds: tuple[int, ...] = (0, 1)
    steps: int = STEPS
    bfloat16: bool = True
    """Products in bfloat16 (autocast)."""
    workers: int = 2


def main(options: Options) -> None:
    pool = Pool(options.output, "reviews", options.bfloat16, options.workers)
    base = ours("reviews", options.steps, options.seeds[0])
    rows = [("default", "", base), *variations(base)]
    pool.run(replace(s, seed=seed) for _, _, s in rows for seed in options.seeds)
    lines = [
        ["choice", "value", "parameters", "training loss", "validation loss", "seconds a step"]
    ]
    standard = [pool.record(replace(base, seed=seed)) for seed in options.seeds]
    for choice, value, setting in rows:
        records = [pool.record(replace(setting, seed=seed)) for seed in options.seeds]
        parameters = statistics.fmean(r["parameters"]["end"] for r in records)
        cells = [choice, value, f"{parameters / 1e3:,.0f} k"]
        for measure in ("train_loss", "eval_loss"):
            if setting == base:
                cells.append(f"{statistics.fmean(r[measure] for r in records):.4f}")
            else:
                pairs = zip(records, standard, strict=True)
                cells.append(spread([r[measure] - s[measure] for r, s in pairs], "+.4f"))
        cells.append(f"{statistics.median(r['seconds_per_step'] for r in records):.2f}")
        lines.append(cells)
    text = table(lines)
    (options.output / "campaign.md").write_text(text)
    print(text)


def variations(base: Setting) -> Iterator[tuple[str, str, Setting]]:
    """What was changed, to what, and the setting with it."""
    for power in (0.0, 0.25):
        yield "Adam: power of the rows", f"{power:g}", replace(base, rule=(("power", power),))
    for power in (0.0, 0.25, 0.75, 1.0):
        yield (
            "Adam: power of the spectrum",
            f"{power:g}",
            replace(base, rule=(("spectrum", power),)),
        )
    for betas in ((0.8, 0.99), (0.95, 0.99), (0.9, 0.999)):
        yield "Adam: betas", f"{betas}", replace(base, rule=(("betas", betas),))
    yield "update rule", "Spectral", replace(base, method="rankwise spectral")
    for factor in (1 / 3, 2, 3):
        lr = DEFAULT_LR * factor
        yield "learning rate", f"{lr:g}", replace(base, lr=lr)
    for max_step in (1e-3, 4e-3, float("inf")):
        name = f"{max_step:g}, rate x 10"
        setting = replace(base, lr=10 * DEFAULT_LR, optimizer=(("max_step", max_step),))
        yield "longest step", name, setting
    for rank in (4, 8):
        fixed = replace(base, rank=rank, mean_rank=None)
        yield "rank rule", f"fixed rank {rank}", fixed
    for rtol in (0.2, 0.3, 0.4):
        yield "rank rule", f"tolerance {rtol:g}", replace(base, mean_rank=None, rtol=rtol)
    for grow in (1, 4):
        setting = replace(base, rank=2, rank_rule=(("grow", grow),))
        yield "budget from rank 2: growth", str(grow), setting
    for rank in (16, 32):
        yield "budget: initial rank", str(rank), replace(base, rank=rank)
    setting = replace(base, rank=32, rank_rule=(("keep", 0.01),))
    yield "budget from rank 32: kept a cycle", "0.01 (at once)", setting
    for every in (10, 50, 100):
        yield "budget: steps a cycle", str(every), replace(base, rank_rule=(("every", every),))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
