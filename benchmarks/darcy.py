"""Darcy flow: low rank at several sizes, its dense twin, narrower ones and a cut; one command.

Of every network the weights of the form that would run are counted, `r (m + n)` for a layer in two
factors. Dense networks of every width get the best of their rates, by the held-out error on the
first seed; low rank has one rate at all sizes.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from darcy_figure import draw, draw_fields
from darcy_task import SHOWN, STEPS, WIDTH, cut
from methods import Setting
from pool import Pool
from tables import spread, table

from rankwise.recipes.darcy import CORRECTIONS, POINTS, darcy, weights

PARTS = (0.02, 0.05, 0.10, 0.30)
LR, DENSE_RATES = 0.08, (1e-3, 3e-3, 6e-3, 1e-2, 2e-2)
START = 2.0
"""Starting parameters over the budget, every layer at one rank."""
CYCLE = 40
SHAPES = ((WIDTH, 2 * POINTS), (POINTS, WIDTH)) * CORRECTIONS

Results = dict[str, dict[float, list[dict[str, Any]]]]


@dataclass(frozen=True)
class Options:
    """Learn Darcy flow with networks of several sizes."""

    output: Path = Path("runs/darcy")
    """Folder of the records, the table and the figures."""
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = STEPS
    parts: tuple[float, ...] = PARTS
    """Parts of the dense network's weights."""
    workers: int = 1


def low_rank(part: float, steps: int, seed: int) -> Setting:
    """A budget of parameters, from a start of twice as many."""
    budget = int(part * weights(WIDTH))
    rank = max(1, int(START * budget / sum(m + n + 1 for m, n in SHAPES)))
    rank = min(rank, *((m * n - 1) // (m + n) for m, n in SHAPES))
    rank_rule = (("parameters", budget), ("every", CYCLE))
    return Setting("rankwise", rank, LR, seed, steps, rank_rule=rank_rule)


def dense(pool: Pool, part: float, options: Options) -> list[Setting]:
    """All seeds of the network of this part of the width, at its best rate on the first."""
    width = round(part * WIDTH)

    def at(lr: float, seed: int) -> Setting:
        file = pool.folder.absolute() / f"dense-{width}-{lr:g}-{seed}.safetensors"
        rule = (("width", width), ("file", str(file)))
        return Setting("dense", 0, lr, seed, options.steps, rule=rule)

    tried = [at(lr, options.seeds[0]) for lr in DENSE_RATES]
    pool.run(tried)
    best = min(tried, key=lambda setting: pool.record(setting)["eval_loss"])
    settings = [at(best.lr, seed) for seed in options.seeds]
    pool.run(settings)
    return settings


def measure(pool: Pool, options: Options) -> Results:
    """Records by method and part of the weights."""
    whole = dense(pool, 1.0, options)
    results: Results = {"dense": {1.0: [pool.record(s) for s in whole]}}
    for name in ("rankwise", "narrower", "dense, cut"):
        results[name] = {}
    for part in options.parts:
        ours = [low_rank(part, options.steps, seed) for seed in options.seeds]
        pool.run(ours)
        records = [pool.record(s) for s in ours]
        narrow = dense(pool, part, options)
        results["rankwise"][part] = records
        results["narrower"][part] = [pool.record(s) for s in narrow]
        results["dense, cut"][part] = [
            {**record, **cut(dict(setting.rule)["file"], record["ranks"])}
            for setting, record in zip(whole, records, strict=True)
        ]
    return results


def main(options: Options) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    pool = Pool(options.output, "darcy", bfloat16=False, workers=options.workers)
    results = measure(pool, options)
    text = report(results)
    (options.output / "darcy.md").write_text(text)
    draw(results, options.output / "darcy.png")
    small = min(options.parts, key=lambda part: abs(part - 0.1))
    guesses = {
        "dense": results["dense"][1.0][0],
        f"low rank, {small:.0%}": results["rankwise"][small][0],
    }
    test = darcy().test
    draw_fields(
        test.a[SHOWN].tolist(),
        test.u[SHOWN].tolist(),
        {name: record["shown"] for name, record in guesses.items()},
        options.output / "darcy-fields.png",
    )
    print(text)


def report(results: Results) -> str:
    header = ["network", "weights", "part", "ranks or width (first)", "rate"]
    header += ["training error, %", "held-out error, %", "test error, %"]
    lines = [header]
    for name, parts in results.items():
        for records in parts.values():
            held = statistics.fmean(r["parameters"]["end"] for r in records)
            row = [name, f"{held:,.0f}", f"{held / weights(WIDTH):.1%}", _size(records[0])]
            was_cut = name == "dense, cut"
            row.append("" if was_cut else f"{records[0]['setting']['lr']:g}")
            row.append("" if was_cut else _percent(records, "train_loss"))
            lines.append(row + [_percent(records, key) for key in ("eval_loss", "test_loss")])
    return table(lines)


def _size(record: dict[str, Any]) -> str:
    width = dict(record["setting"]["rule"]).get("width")
    return str(width) if width else ", ".join(map(str, record["ranks"].values()))


def _percent(records: list[dict[str, Any]], key: str) -> str:
    return spread([100 * r[key] for r in records], ".2f")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
