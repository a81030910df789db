"""How many samples models classify as they should, under an attack, at several budgets."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.robust.arguments import check_batch, check_count, check_eps
from rankwise.robust.attack import Attack
from rankwise.robust.logits import check_labels, class_count
from rankwise.robust.objective import right
from rankwise.robust.region import Bounds
from rankwise.robust.still import still

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """What came of an attack.

    Attributes:
        eps: the budgets, clean inputs (0) first.
        right: for each model which samples were classified as labelled, bool (budgets, rows), on
            the CPU; rows are the samples in the order given, for paired comparisons.
    """

    eps: tuple[float, ...]
    right: dict[str, Tensor]

    @property
    def accuracy(self) -> dict[str, tuple[float, ...]]:
        """For each model the share of samples in [0, 1] that were classified right at each eps."""
        return {name: tuple(t.double().mean(1).tolist()) for name, t in self.right.items()}


def evaluate(
    models: Mapping[str, nn.Module],
    x: Tensor,
    y: Tensor,
    attack: Attack,
    eps: Sequence[float],
    *,
    surrogate: nn.Module | None = None,
    bounds: Bounds = (0.0, 1.0),
    batch_size: int = 500,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Accuracy of each model on clean and on adversarial inputs.

    Each batch is attacked with random numbers from the seed and its place alone: the same for all
    models and budgets, so that differences are not those of luck.

    Args:
        models: by the name that results bear; each on one device, to which batches are moved.
        x: clean inputs (rows, ...), on any device.
        y: labels (rows,).
        attack: how perturbations are made.
        eps: budgets, finite and >= 0, in the unit of `x`; 0 is always evaluated, and first.
        surrogate: a model whose adversarial inputs all `models` are shown (transfer attack), or
            None: each is attacked by its own gradients (white box).
        bounds: as in `Attack.perturb`.
        batch_size: rows at once, >= 1.
        seed: >= 0.
        progress: called with the numbers of attacked batches done and to do.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: for values out of range, before anything is attacked.
    """
    _check_kinds(models, attack, eps)
    check_count("evaluate", "batch_size", batch_size)
    budgets = (0.0, *(e for e in map(check_eps, eps) if e > 0.0))
    asked = list(models.values()) + ([] if surrogate is None else [surrogate])
    for model in asked:
        check_batch(model, x, y)
        check_labels(y, _classes(model, x))
    source = {name: model if surrogate is None else surrogate for name, model in models.items()}
    victims: dict[int, list[str]] = {}
    for name, model in source.items():
        victims.setdefault(id(model), []).append(name)
    hits = {name: torch.zeros(len(budgets), len(x), dtype=torch.bool) for name in models}
    starts = range(0, len(x), batch_size)
    done, total = 0, len(starts) * len(budgets) * len(victims)
    for names in victims.values():
        attacked = source[names[0]]
        for batch, start in enumerate(starts):
            rows = slice(start, start + batch_size)
            clean, labels = moved(attacked, x[rows]), moved(attacked, y[rows])
            for i, budget in enumerate(budgets):
                draw = torch.Generator().manual_seed(1_000_003 * seed + batch)
                shown = attack.perturb(
                    attacked, clean, labels, budget, bounds=bounds, generator=draw
                )
                for name in names:
                    hits[name][i, rows] = classified(models[name], shown, labels).cpu()
                done += 1
                if progress is not None:
                    progress(done, total)
    return Evaluation(budgets, hits)


def _check_kinds(models: Any, attack: Any, eps: Any) -> None:
    if not isinstance(models, Mapping) or not models:
        raise TypeError(
            f'`models` must map names to models, such as {{"dense": net}}, got {models!r}'
        )
    if not isinstance(attack, Attack):
        raise TypeError(f"`attack` must be one of rankwise.robust, such as `PGD()`, got {attack!r}")
    if not isinstance(eps, Iterable):
        raise TypeError(f"`eps` must be several numbers, such as `[0.01, 0.02]`, got {eps!r}")


def classified(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which rows `model`, evaluating, classifies as labelled, bool (rows,)."""
    with torch.no_grad(), still(model):
        return right(model(moved(model, x)), moved(model, y).long())


def moved(model: nn.Module, t: Tensor) -> Tensor:
    """`t` on the device of the model's first parameter, or where it is if there is none."""
    first = next(model.parameters(), None)
    return t if first is None else t.to(first.device)


def _classes(model: nn.Module, x: Tensor) -> int:
    with still(model):
        return class_count(model, moved(model, x[:1]))
