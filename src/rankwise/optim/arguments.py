"""What `Optimizer` can be given, and what it cannot."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from rankwise.integrators.coefficients import BasisEvery
from rankwise.integrators.integrator import Integrator
from rankwise.nn.factored import Factored
from rankwise.numerics.given import check_integer, check_number
from rankwise.optim.budget import Budget
from rankwise.optim.conditioning import Conditioning
from rankwise.optim.layers import NamedLayer
from rankwise.optim.rank_rule import CycledRank, RankRule
from rankwise.optim.rate_free import RateFree
from rankwise.optim.step_control import StepControl
from rankwise.optim.update_rule import SGD, UpdateRule, check_unit_interval


def check_closure(
    integrator: Integrator, closure: Callable[[], Any] | None, gradients: Iterable[Tensor]
) -> None:
    """ValueError unless an integrator that runs the model again can do so, from nothing."""
    name = type(integrator).__name__
    if closure is None:
        raise ValueError(
            f"the integrator {name} runs the model again at every point: call `step(closure)` with "
            "a function that computes the loss, calls `backward()` and returns the loss"
        )
    if any(bool(g.any()) for g in gradients):
        raise ValueError(
            f"there are gradients from before `step(closure)`, but the integrator {name} needs all "
            "of a step's gradient at every point. Accumulate inside the closure, or call "
            "`zero_grad()` after each step."
        )


def check_kind(name: str, value: Any, kind: type, example: str) -> None:
    if value is not None and not isinstance(value, kind):
        hint = (
            f"an instance, `{value.__name__}(...)`"
            if isinstance(value, type)
            else f"of type {kind.__name__}, such as `rankwise.{example}`"
        )
        raise TypeError(f"`Optimizer({name}=...)` must be {hint}, got {value!r}")


def check_combination(rule: UpdateRule, integrator: Integrator) -> None:
    if not integrator.same_matrix and not isinstance(rule, SGD):
        raise ValueError(
            f"`Optimizer(integrator={integrator!r})` runs the model again at other matrices, where "
            f"the moments of {type(rule).__name__} do not hold: use `rule=rankwise.SGD()`, or an "
            "integrator of one backward pass (ParallelBUG, AugmentedBUG, AugmentedPSI)"
        )


def check_comparable(rank_rule: RankRule, layers: list[NamedLayer]) -> None:
    if isinstance(rank_rule, Budget) and len({layer.base is None for _, layer in layers}) > 1:
        raise ValueError(
            "`Optimizer(rank_rule=Budget(...))` cannot compare adapters with layers that are low "
            "rank as a whole, and the model has both. Use `Tolerance`, which judges each by itself."
        )


def check_conditioning(
    conditioning: Conditioning | None, rank_rule: RankRule, layers: list[NamedLayer]
) -> None:
    if conditioning is not None and not layers:
        raise ValueError(
            f"`Optimizer(conditioning={conditioning!r})` keeps the spectra of low-rank layers in "
            "shape, and the model trains none: call `rankwise.factorize_` or `rankwise.adapt_` "
            "before"
        )
    if conditioning is not None and conditioning.lifts and rank_rule.grows:
        without = "`grow=0` or " if isinstance(rank_rule, CycledRank) else ""
        raise ValueError(
            f"`Optimizer(conditioning={conditioning!r})` would make every new direction as large "
            f"as trained ones, and {type(rank_rule).__name__} lets layers gain some: use {without}"
            "`FixedRank()`, or `SpreadPenalty`, which lifts them slowly"
        )


def check_layers(rule: UpdateRule, integrator: Integrator, layers: list[NamedLayer]) -> None:
    """ValueError for a layer whose weight is a tensor, where a part is made for matrices."""
    tensors = [(name, layer) for name, layer in layers if not isinstance(layer, Factored)]
    for argument, part, instead in (
        ("rule", rule, "`Adam()`, `HeavyBall()` or `SGD()`"),
        ("integrator", integrator, "`ParallelBUG()`, the default"),
    ):
        if tensors and part.needs_matrices:
            name, layer = tensors[0]
            raise ValueError(
                f"`Optimizer({argument}={part!r})` is made for matrices, and layer {name!r} is a "
                f"{type(layer).__name__}: use {instead}"
            )


def check_control(
    control: StepControl, options: dict[str, Any], groups: list[dict[str, Any]]
) -> None:
    """ValueError for options that only steps by a rate have."""
    if not isinstance(control, RateFree):
        return
    for given in (options, *groups):
        for name in ("max_step", "weight_decay"):
            if given.get(name) not in (None, 0.0):
                raise ValueError(
                    f"`{name}={given[name]}` is for steps by a learning rate, and "
                    "`control=RateFree()` has none: leave it out"
                )
    if any("lr" in group for group in groups):
        raise ValueError(
            "`groups` give a learning rate, and `control=RateFree()` has none: leave `lr` out. "
            "Dense parameters take `RateFree(dense_lr=...)`."
        )


def check_turns(turns: int, integrator: Integrator) -> None:
    check_integer("Optimizer(turns=...)", turns)
    if turns < 1:
        raise ValueError(f"`Optimizer(turns=...)` must be at least 1 step, got {turns}")
    if turns > 1 and not integrator.same_matrix:
        raise ValueError(
            f"`Optimizer(turns={turns})` lets layers move in different steps, and "
            f"{type(integrator).__name__} moves all of them together: leave `turns` out"
        )
    if turns > 1 and isinstance(integrator, BasisEvery):
        raise ValueError(
            f"`Optimizer(turns={turns})` and `{integrator!r}` both choose the steps in which bases "
            "move, and those of some layers might never: leave one of the two out"
        )


def check_inputs_every(every: int, rule: UpdateRule, integrator: Integrator) -> None:
    check_integer("Optimizer(inputs_every=...)", every)
    if every < 1:
        raise ValueError(f"`Optimizer(inputs_every=...)` must be at least 1 step, got {every}")
    if every > 1 and rule.mean_decay is None:
        raise ValueError(
            f"`Optimizer(inputs_every={every})` takes gradients that it has not formed from their "
            f"mean, and {type(rule).__name__} keeps none: use `Adam()` or `Spectral()`"
        )
    if every > 1 and integrator.points > 1:
        raise ValueError(
            f"`Optimizer(inputs_every={every})` keeps no inputs, and {type(integrator).__name__} "
            "has need of those of every step: use ParallelBUG, the default"
        )


def check_options(group: dict[str, Any]) -> None:
    for name in ("lr", "weight_decay", "max_step", "eps"):
        check_number(f"Optimizer({name}=...)", group[name])
    for name in ("lr", "weight_decay", "eps"):
        if not group[name] >= 0.0:
            raise ValueError(f"`Optimizer({name}=...)` must be at least 0, got {group[name]}")
    peak = group.get("peak_lr", 0.0)
    if isinstance(peak, bool) or not isinstance(peak, (int, float)) or not peak >= 0.0:
        raise ValueError(f"'peak_lr' of a group must be at least 0, got {peak!r}")
    betas = group["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"'betas' of a group must be two numbers, got {betas!r}")
    for beta in betas:
        check_unit_interval("Optimizer", "betas", beta)
    if not group["max_step"] > 0:
        raise ValueError(f"`Optimizer(max_step=...)` must be positive, got {group['max_step']}")
