"""Accuracy under attack of dense and low-rank networks of a tenth of the size; one command.

Trains every contender of `robust_arms.py` for each data set, network and seed, attacks it, keeps a
record and the weights of each in `--output`; what has a record is not run again. Then
`robust_report.py` writes the tables of `docs/robust.md` from the records.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from results import write_record
from robust_arms import AGAINST, ARMS, TRUNCATED, Case, Ring, Trained, truncated
from torch import nn

import rankwise as rw
from rankwise import robust
from rankwise.io.tensor_file import write_tensors
from rankwise.recipes.comparison import score
from rankwise.recipes.images import Images, read_images
from rankwise.robust.auto_attack import apgd, targeted_apgd

EPS = {"fashion-mnist": (0.01, 0.02, 0.05), "mnist": (0.02, 0.05, 0.1)}
"""Of a pixel in [0, 1], for the l_inf attacks."""
AGAINST_EPS = {"fashion-mnist": 0.03, "mnist": 0.1}
EPOCHS = {"mlp": 6, "vgg": 2}
ROWS = {"mlp": (2000, 200, 25), "vgg": (400, 60, 10)}
"""Test images for FGSM and PGD, for AutoAttack's two APGD members, and steps of the latter."""


@dataclass(frozen=True)
class Options:
    """Train, attack, record."""

    output: Path = Path("runs/robust")
    data: tuple[str, ...] = ("fashion-mnist", "mnist")
    models: tuple[str, ...] = ("mlp", "vgg")
    seeds: tuple[int, ...] = (0, 1, 2)
    against: bool = False
    """Train all of them against an adversary."""
    epochs: int | None = None
    arms: tuple[str, ...] = tuple(ARMS)
    auto: bool = True


def main(options: Options) -> None:
    torch.set_num_threads(1)
    for seed in options.seeds:
        for model in options.models:
            for data in options.data:
                eps = AGAINST_EPS[data] if options.against else 0.0
                case = Case(data, model, seed, options.epochs or EPOCHS[model], eps)
                _run(case, options)


def _run(case: Case, options: Options) -> None:
    images = read_images(case.data)
    ring = Ring(case, images)
    for name, (model, size), seconds in _contenders(ring, options):
        record = {
            "case": asdict(case), "arm": name, "parameters": size, "seconds": seconds,
            "dense_parameters": sum(p.numel() for p in ring.twins.dense.parameters()),
            "condition": robust.condition_numbers(model),
            **score(model, images)._asdict(), **attacks(model, images, case, options.auto),
        }  # fmt: skip
        path = _path(case, name, options)
        plain = rw.shrink(model) if list(rw.Optimizer(model).layers) else model
        write_tensors(path.with_suffix(".safetensors"), plain.state_dict(), {})
        write_record(path, record)
        told = {k: [f"{100 * a:.1f}" for a in v] for k, v in record["attacks"].items()}
        print(f"{path.stem:42s} {100 * record['accuracy']:.2f}", told, flush=True)


def _contenders(ring: Ring, options: Options) -> Iterator[tuple[str, Trained, float]]:
    for name, arm in ARMS.items():
        if name not in (AGAINST if ring.case.eps else options.arms):
            continue
        missing = not _path(ring.case, name, options).exists()
        cut = name == "dense" and not _path(ring.case, TRUNCATED, options).exists()
        if missing or cut:
            start = time.perf_counter()
            trained = arm(ring)
            seconds = time.perf_counter() - start
            if missing:
                yield name, trained, seconds
            if cut:
                yield TRUNCATED, truncated(ring, trained[0]), 0.0


def attacks(model: nn.Module, images: Images, case: Case, auto: bool) -> dict[str, Any]:
    """Accuracy at each budget, clean first, under each attack in l_inf."""
    rows, fewer, steps = ROWS[case.model]
    seen = robust.Normalised(model.eval(), images.mean, images.deviation)
    pixels, eps = images.pixels(images.test[:rows]), EPS[case.data]
    kinds = {"FGSM": (robust.FGSM(), rows), "PGD-20": (robust.PGD(steps=20), rows)}
    if auto:
        members = robust.AutoAttack(members=(apgd, targeted_apgd), steps=steps)
        kinds["APGD"] = (members, fewer)
    found = {}
    for name, (attack, count) in kinds.items():
        x, y = pixels[:count], images.test_labels[:count]
        found[name] = robust.evaluate({"": seen}, x, y, attack, eps).accuracy[""]
    return {"eps": [0.0, *eps], "attacks": found}


def _path(case: Case, name: str, options: Options) -> Path:
    kind = "against" if case.eps else "plain"
    arm = name.replace(" ", "_")
    return options.output / f"{kind}-{case.data}-{case.model}-s{case.seed}-{arm}.json"


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
