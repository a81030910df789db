"""The tables of `docs/robust.md` and `docs/robust.png`, from the records of `robust.py`."""

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tables import spread, table

RESULTS = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- end of results -->)", re.DOTALL)
NETWORKS = {"mlp": "MLP", "vgg": "VGG"}
DATA = {"fashion-mnist": "Fashion-MNIST", "mnist": "MNIST"}
DRAWN = {
    "dense": ("#d55e00", "o"),
    "truncated SVD": ("#999999", "x"),
    "two factors": ("#e69f00", "^"),
    "DLRT": ("#444444", "s"),
    "beta 0.3": ("#56b4e9", "v"),
    "CondLR clamp": ("#cc79a7", "P"),
    "norm 1": ("#0072b2", "D"),
}

Record = dict[str, Any]
Group = dict[str, list[Record]]
"""Records by contender, ordered by seed."""


@dataclass(frozen=True)
class Options:
    """Write the tables and the picture."""

    output: Path = Path("runs/robust")
    """Folder of the records."""
    docs: Path = Path("docs")


def main(options: Options) -> None:
    groups = read(options.output)
    text = "\n".join(section(key, group) for key, group in groups.items())
    page = options.docs / "robust.md"
    page.write_text(RESULTS.sub(lambda _: text, page.read_text()))
    draw({key: group for key, group in groups.items() if not key[0]}, options.docs / "robust.png")
    print(text)


def read(folder: Path) -> dict[tuple[float, str, str], Group]:
    """By the size of the adversary in training, network and data."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    groups: dict[tuple[float, str, str], Group] = defaultdict(lambda: defaultdict(list))
    for record in sorted(records, key=lambda r: (_rank(r["arm"]), r["case"]["seed"])):
        case = record["case"]
        groups[case["eps"], case["model"], case["data"]][record["arm"]].append(record)
    return dict(sorted(groups.items()))


def _rank(arm: str) -> int:
    order = ("dense", "truncated SVD", "two factors", "DLRT", "beta", "CondLR", "norm")
    return next(i for i, start in enumerate(order) if arm.startswith(start))


def section(key: tuple[float, str, str], group: Group) -> str:
    """A heading and the table of one comparison."""
    against, model, data = key
    first = group["dense"][0]
    eps = [f"{e:g}" for e in first["eps"][1:]]
    trained = f", trained against FGSM of eps {against:g}" if against else ""
    epochs = first["case"]["epochs"]
    head = (
        f"**{NETWORKS[model]}, {DATA[data]}{trained}**; {epochs} epochs, eps {', '.join(eps)}\n\n"
    )
    return head + table(list(rows(group)))


def rows(group: Group) -> Iterator[list[str]]:
    attacks = [a for a in ("FGSM", "PGD-20", "APGD") if _everywhere(a, group)]
    yield ["", "seeds", "removed, %", "condition", "clean", *attacks]
    for arm, records in group.items():
        removed = [100 * (1 - r["parameters"] / r["dense_parameters"]) for r in records]
        worst = statistics.median(max(r["condition"].values()) for r in records)
        clean = spread([100 * r["accuracy"] for r in records], ".2f")
        cells = [_cell(attack, records) for attack in attacks]
        yield [
            arm,
            str(len(records)),
            f"{statistics.fmean(removed):.1f}",
            f"{worst:.1f}",
            clean,
            *cells,
        ]


def _everywhere(attack: str, group: Group) -> bool:
    return all(attack in r["attacks"] for records in group.values() for r in records)


def _cell(attack: str, records: Sequence[Record]) -> str:
    """Mean accuracies at all budgets, and their deviations over seeds."""
    by_budget = list(zip(*(r["attacks"][attack][1:] for r in records), strict=True))
    means = " / ".join(f"{100 * statistics.fmean(values):.1f}" for values in by_budget)
    if len(records) < 2:
        return means
    return f"{means} ({' / '.join(f'{100 * statistics.stdev(v):.1f}' for v in by_budget)})"


def draw(groups: Mapping[tuple[float, str, str], Group], path: Path) -> None:
    """Accuracy under PGD over its size, a panel a comparison."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(groups), 4.2), layout="constrained", dpi=120)
    panels: Iterable[Any] = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, ((_, model, data), group) in zip(panels, groups.items(), strict=True):
        for arm, (colour, marker) in DRAWN.items():
            curves = [[100 * a for a in r["attacks"]["PGD-20"]] for r in group.get(arm, [])]
            if curves:
                means = [statistics.fmean(values) for values in zip(*curves, strict=True)]
                eps = group[arm][0]["eps"]
                axes.plot(eps, means, marker=marker, color=colour, label=arm, linewidth=1.4)
        axes.set_title(f"{NETWORKS[model]}, {DATA[data]}", loc="left", fontweight="bold")
        axes.set_xlabel("eps of PGD-20, of a pixel in [0, 1]")
        axes.set_ylabel("accuracy, %")
        axes.set_ylim(0, 100)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
