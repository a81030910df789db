"""The job of `rankwise attack`."""

import warnings
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankwise.io.atomic import write_text
from rankwise.recipes.attack_options import DEFAULT_DATA, AttackOptions
from rankwise.recipes.attacks import ATTACKS, budgets, check_classes
from rankwise.recipes.comparison import score
from rankwise.recipes.folder import begin, finish, prepared
from rankwise.recipes.history import Watcher
from rankwise.recipes.images import Images, read_images
from rankwise.recipes.trained_victims import NAMES, discard, trained_victims
from rankwise.recipes.victims import Subjects, Victim, read_subjects
from rankwise.report.attack_figure import draw_attacks
from rankwise.report.history import finite
from rankwise.report.machine import versions
from rankwise.report.markdown import markdown
from rankwise.robust.certificate import certified_accuracy, certified_radius
from rankwise.robust.condition_numbers import condition_numbers
from rankwise.robust.evaluate import evaluate, moved
from rankwise.robust.lipschitz import lipschitz_bound
from rankwise.robust.masking import masking_signs
from rankwise.robust.normalised import Normalised

TABLE, FIGURE = "table.md", "attack.png"
PACKAGES = ("rankwise", "torch", "safetensors")

Measures = dict[str, Any]


class Outcome(NamedTuple):
    """What a finished run leaves, beside its files."""

    metrics: Measures
    folder: Path


def attack(asked: AttackOptions, watcher: Watcher) -> Outcome:
    """Attack as `asked`; writes the folder's files.

    Raises ValueError, TypeError, FileNotFoundError, ImportError or RuntimeError for what the user
    can mend, and Interrupted when asked to stop while it trains.
    """
    options = prepared(asked)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    victims, images = _subjects(options, watcher)
    models = {victim.name: _measured(victim, images, options, watcher) for victim in victims}
    _attack_all(models, victims, images, options, watcher)
    metrics = {
        "models": models,
        "surrogate": options.surrogate,
        "rows": min(options.rows, len(images.test)),
        "seed": options.seed,
        "options": options.to_json(),
        "versions": versions(PACKAGES),
    }
    _write(options.output, metrics)
    return Outcome(metrics, options.output)


def _subjects(options: AttackOptions, watcher: Watcher) -> Subjects:
    """What is attacked. The folder begins when all that was asked for has been found fit."""
    if options.subjects:
        found = read_subjects(
            options.subjects,
            options.data,
            options.output,
            watcher,
            trust_code=options.trust_code,
        )
        _begin(options, found.images, [victim.name for victim in found.victims])
        return found
    watcher.say("loading data")
    data = options.data or DEFAULT_DATA
    images = read_images(data)
    _begin(options, images, NAMES)
    return Subjects(trained_victims(options, data, images, watcher), images)


def _begin(options: AttackOptions, images: Images, names: Sequence[str]) -> None:
    check_classes(options.attacks, len(images.classes))
    if options.surrogate is not None and options.surrogate not in names:
        raise ValueError(
            f"--surrogate must be one of {', '.join(map(repr, names))}, got {options.surrogate!r}"
        )
    if not (options.resume or options.subjects):
        discard(options.output)
    begin(options, (TABLE, FIGURE))


def seen(victim: Victim, images: Images) -> Normalised:
    """The model of pixels in [0, 1]."""
    pixelwise = Normalised(victim.model, images.mean, images.deviation)
    first = next(victim.model.parameters(), None)
    return pixelwise.to(None if first is None else first.device).eval()


def _measured(victim: Victim, images: Images, options: AttackOptions, watcher: Watcher) -> Measures:
    """What is known of a model without an attack, and whether attacks can be believed."""
    watcher.say(f"certifying {victim.name}")
    x, y = _images(images, options)
    with warnings.catch_warnings():
        # They go into the table.
        warnings.simplefilter("ignore", UserWarning)
        signs = masking_signs(seen(victim, images), x, y, max(options.eps), seed=options.seed)
    return {
        "parameters": victim.parameters,
        "removed": victim.removed,
        **score(victim.model, images)._asdict(),
        "condition": finite(condition_numbers(victim.model)),
        "masking": signs,
        "attacks": {},
        **_certified(victim, images, options),
    }


def _certified(victim: Victim, images: Images, options: AttackOptions) -> Measures:
    """A bound and certified accuracies, or why there are none for such a network."""
    model = seen(victim, images)
    x, y = (moved(model, t) for t in _images(images, options))
    try:
        bound, radii = lipschitz_bound(model, x[:1]), certified_radius(model, x, y)
    except ValueError as error:
        return {"lipschitz": None, "certified": None, "uncertified": str(error)}
    budgets_l2 = sorted(set(options.eps_l2))
    return {
        "lipschitz": bound,
        "certified": [[eps, certified_accuracy(radii, eps)] for eps in budgets_l2],
    }


def _attack_all(
    models: dict[str, Measures],
    victims: Sequence[Victim],
    images: Images,
    options: AttackOptions,
    watcher: Watcher,
) -> None:
    """Accuracies at each budget, clean first, into `models`."""
    x, y = _images(images, options)
    pixelwise = {victim.name: seen(victim, images) for victim in victims}
    surrogate = None if options.surrogate is None else pixelwise[options.surrogate]
    for name in options.attacks:
        title, make = ATTACKS[name]

        def progress(done: int, total: int, title: str = title) -> None:
            watcher.say(f"{title} {done} of {total}")

        found = evaluate(
            pixelwise, x, y, make(), budgets(name, options.eps, options.eps_l2),
            surrogate=surrogate, seed=options.seed, progress=progress,
        )  # fmt: skip
        for victim, accuracies in found.accuracy.items():
            pairs = zip(found.eps, accuracies, strict=True)
            models[victim]["attacks"][title] = [list(pair) for pair in pairs]


def _images(images: Images, options: AttackOptions) -> tuple[Tensor, Tensor]:
    return images.pixels(images.test[: options.rows]), images.test_labels[: options.rows]


def table_of(metrics: Measures) -> tuple[list[str], list[list[str]]]:
    """Header and rows: models side by side, quantities below each other."""
    models: dict[str, Measures] = metrics["models"]
    rows = [
        ["parameters", *(f"{m['parameters']:,}" for m in models.values())],
        ["removed, %", *(_cell(m["removed"], ".1f", 100) for m in models.values())],
        ["largest condition number", *(_cell(_worst(m), ".1f") for m in models.values())],
        ["Lipschitz bound", *(_cell(m["lipschitz"], ".3g") for m in models.values())],
        ["accuracy on all test images, %", *(f"{m['accuracy']:.2%}"[:-1] for m in models.values())],
    ]
    first = next(iter(models.values()))
    for title, pairs in first["attacks"].items():
        for i, (eps, _) in enumerate(pairs[1:], start=1):
            cells = [f"{100 * m['attacks'][title][i][1]:.1f}" for m in models.values()]
            rows.append([f"{title}, eps {eps:g}", *cells])
    for i, eps in enumerate(sorted(set(metrics["options"]["eps_l2"]))):
        cells = [
            _cell(m["certified"] and m["certified"][i][1], ".1f", 100) for m in models.values()
        ]
        rows.append([f"certified, l2 eps {eps:g}", *cells])
    return ["", *models], rows


def _worst(measures: Measures) -> float | None:
    numbers = (inf if n is None else n for n in measures["condition"].values())
    return max(numbers, default=None)


def _cell(value: float | None, form: str, factor: float = 1.0) -> str:
    return "-" if value is None else format(factor * value, form)


def _write(folder: Path, metrics: Measures) -> None:
    """All files but `metrics.json` first: where that is, the run is complete."""
    write_text(folder / TABLE, markdown(*table_of(metrics)))
    draw_attacks(metrics, folder / FIGURE)
    finish(folder, metrics)
