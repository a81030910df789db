"""The page: what is on it, and its file."""

import json
from collections.abc import Sequence
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.io.atomic import write_text
from rankwise.io.path import given_path
from rankwise.report.page.attacked import attack_charts
from rankwise.report.page.chart import Drawn, draw, legend
from rankwise.report.page.curves import Named, main_charts, more_charts, named_networks
from rankwise.report.page.facts import facts_of
from rankwise.report.page.headline import cards_of, sentence
from rankwise.report.page.heat import Heat, heat_map
from rankwise.report.page.layers import Layer, layers_of
from rankwise.report.page.notes import notes_of
from rankwise.report.page.run import Run, read_runs
from rankwise.report.page.svg import Markup, with_code
from rankwise.report.page.tables import compared, configuration, differences, surroundings
from rankwise.report.page.tiles import Tiles, spectra_of

HERE = Path(__file__).parent
TEMPLATE, STYLE, SCRIPT = "report.html", "report.css", "report.js"
FINISHED, UNFINISHED = "complete", "not complete"


class Inside(NamedTuple):
    """What is shown of the layers of a network."""

    key: str
    name: str
    layers: list[Layer]
    heat: Heat
    tiles: Tiles | None


class Page(NamedTuple):
    """The text of a page, and the numbers in it."""

    html: str
    numbers: dict[str, Any]


def write_report(
    folders: Sequence[str | Path], output: str | Path, *, title: str | None = None
) -> Page:
    """Write a page of HTML, complete in itself, about the runs in `folders`.

    Args:
        folders: of runs of the command line or of a `Recorder`, at least one.
        output: the file to write.
        title: of the page; by default the names of the runs.

    Returns:
        The page as text (`html`), and what is in it (`numbers`, for JSON).

    Raises:
        ValueError: for a folder that holds no run, or whose files are damaged.
    """
    if isinstance(folders, (str, Path)) or not folders:
        raise ValueError(f"`folders` must be a list of folders of runs, got {folders!r}")
    target = given_path(output, "output")
    page = page_of(read_runs([given_path(folder, "folders") for folder in folders]), title)
    write_text(target, page.html)
    return page


def page_of(runs: Sequence[Run], title: str | None = None) -> Page:
    """Of runs that have been read."""
    networks = named_networks(runs)
    recorded = [n for n in networks if n.lines]
    steps = [step for n in recorded for step in (n.lines[0]["step"], n.lines[-1]["step"])]
    span = (min(steps), max(steps)) if steps else None
    main = [draw(c, span if c.x == "step" else None) for c in main_charts(recorded)]
    more = [draw(c, span) for c in more_charts(recorded)]
    attacks = attack_charts(runs)
    attacked = [draw(c) for c in attacks]
    inside = [found for n, run in _of_runs(networks, runs) if (found := _inside(n, run))]
    numbers = _numbers(runs, [*main, *more, *attacked], inside)
    heading = title or " and ".join(
        filter(None, [", ".join(r.name for r in runs[:-1]), runs[-1].name])
    )
    options = configuration(runs)
    html = _template().render(
        title=heading,
        runs=[_shown(run) for run in runs],
        compared=compared(runs),
        differences=differences(runs),
        configuration=[row for row in options if row.told],
        unset=[row.name for row in options if not row.told],
        surroundings=surroundings(runs),
        main=main,
        more=more,
        attacks=attacked,
        attack_legend=legend(attacks),
        legend=legend(main_charts(recorded)),
        inside=inside,
        style=Markup((HERE / STYLE).read_text(encoding="utf-8")),
        script=Markup((HERE / SCRIPT).read_text(encoding="utf-8")),
        numbers=embedded(numbers),
    )  # fmt: skip
    return Page(html, numbers)


def embedded(numbers: Any) -> Markup:
    """JSON that cannot end the script element that it is in, nor begin a comment there."""
    text = json.dumps(numbers, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _shown(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "sentence": sentence(run),
        "cards": cards_of(run),
        "notes": [with_code(note) for note in notes_of(run)],
        "state": FINISHED if run.complete else UNFINISHED,
        "table": run.table,
    }


@cache  # Compiling it takes longer than all else of a page.
def _template() -> Any:
    # A dependency of torch.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(HERE)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(TEMPLATE)


def _of_runs(networks: Sequence[Named], runs: Sequence[Run]) -> list[tuple[Named, Run]]:
    owners = [run for run in runs for _ in run.networks]
    return list(zip(networks, owners, strict=True))


def _inside(named: Named, run: Run) -> Inside | None:
    layers = layers_of(run, named.network)
    if not layers:
        return None
    lines = named.lines
    heat = heat_map(layers, lines[0]["step"], lines[-1]["step"])
    return Inside(f"n{named.colour}", named.name, layers, heat, spectra_of(layers, lines))


def _numbers(
    runs: Sequence[Run], charts: Sequence[Drawn], inside: Sequence[Inside]
) -> dict[str, Any]:
    return {
        "runs": [
            {"name": run.name, "complete": run.complete, "facts": _finite(facts_of(run)._asdict())}
            for run in runs
        ],
        "charts": {chart.key: chart.numbers for chart in charts},
        "heats": {one.key: one.heat.numbers for one in inside},
        "spectra": {one.key: one.tiles.numbers for one in inside if one.tiles},
    }


def _finite(facts: dict[str, float | None]) -> dict[str, float | None]:
    return {k: v if v is not None and isfinite(v) else None for k, v in facts.items()}
