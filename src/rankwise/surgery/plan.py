"""A dry run of `adapt_`: every layer with parameters, what would become of it, and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy

from rankwise.cost.machine import Machine
from rankwise.cost.step import StepCosts, step_costs
from rankwise.nn.base import check_module, is_linear, is_plain, linear_shape
from rankwise.nn.factored import Factored
from rankwise.numerics.given import check_number
from rankwise.surgery.count import factor_parameters, total_parameters
from rankwise.surgery.layers import Layer, obstacle, parametric_layers
from rankwise.surgery.places import call
from rankwise.surgery.select import Select, choose
from rankwise.surgery.text import aligned, grouped, title
from rankwise.surgery.train import DenseParameter, dense_parameters


class PlannedLayer(NamedTuple):
    """One module that owns parameters."""

    name: str
    kind: str
    """Name of its type."""
    shape: tuple[int, ...]
    """(out, in) of a linear map; of other modules, the shape of the first parameter."""
    rank: int
    """0 if it is left out."""
    parameters: int
    """Trainable parameters that its factors would hold."""
    reason: str
    """Why it is left out; "" if it is adapted."""
    note: str
    """What else to know: a clipped rank, a quantised or shared weight, other names."""


@dataclass(frozen=True)
class Plan:
    """What `adapt_` would do, or did; `print` it."""

    layers: tuple[PlannedLayer, ...]
    dense: tuple[DenseParameter, ...]
    """Dense parameters that train."""
    total: int
    """Parameters of the model without factors."""
    step: StepCosts | None = None
    """Seconds and bytes of a training step; None without an example."""

    @property
    def adapted(self) -> tuple[PlannedLayer, ...]:
        return tuple(layer for layer in self.layers if not layer.reason)

    @property
    def factors(self) -> int:
        """Parameters of all factors."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def trainable(self) -> int:
        """Parameters of all factors and all dense parameters that train."""
        return self.factors + sum(p.numel for p in self.dense)

    def __str__(self) -> str:
        header = ("layer", "count", "kind", "shape", "rank", "parameters", "")
        rows = [header, *(_row(group) for group in grouped(self.layers))]
        step = [] if self.step is None else ["", str(self.step)]
        return "\n".join([*aligned(rows, right={1, 4, 5}), "", *self._totals(), *step])

    def _totals(self) -> list[str]:
        share = f"{self.trainable / self.total:.2%}" if self.total else "0%"
        lines = [f"adapted: {len(self.adapted)} layers, {self.factors:,} parameters in factors"]
        if self.dense:
            names = ", ".join(p.name for p in self.dense[:6])
            more = f", and {len(self.dense) - 6} more" if len(self.dense) > 6 else ""
            count = sum(p.numel for p in self.dense)
            lines.append(f"dense, trained: {count:,} parameters ({names}{more})")
        else:
            lines.append("dense, trained: none. A new head has to be named: train='classifier'")
        lines.append(f"trainable: {self.trainable:,} parameters, {share} of {self.total:,}")
        return lines


def plan(
    model: nn.Module,
    *,
    rank: int = 8,
    select: Select = None,
    exclude: Select = None,
    min_features: int = 0,
    train: Select = None,
    example: Any = None,
    machine: Machine | None = None,
) -> Plan:
    """What `adapt_` with the same arguments would do; changes nothing.

    Args:
        model: any model.
        rank: of every adapted layer, >= 1; at most min(out, in) of a layer is used.
        select: which linear layers, as in `adapt_`; None for all.
        exclude: which of these not.
        min_features: layers with min(out, in) below this are left out.
        train: names of modules or parameters that train densely, beside the factors.
        example: a batch: a tensor, a tuple of arguments or a dict of named ones. With it,
            `Plan.step` predicts what a training step takes, and what LoRA and full fine-tuning
            would. Two passes are made, forward and backward. With labels, where the model takes
            them, the loss is counted. Fake tensors, or those on the meta device, are enough.
        machine: of which the step is predicted; None: this one, measured in a few seconds the first
            time. For another one `rankwise.cost.measure_machine` there.

    Raises:
        ValueError: for a pattern that matches nothing, a rank below 1, lazy parameters; with an
            example, where the output depends on nothing that would train.
        TypeError: for a pattern of the wrong type.
    """
    check_rank(rank)
    check_number("min_features", min_features)
    check_module(model)
    if any(is_lazy(p) for p in model.parameters()):
        raise ValueError("the model has lazy parameters without a shape; run one batch through it")
    found = parametric_layers(model)
    linear = {name: layer.module for layer in found if _is_map(layer) for name in layer.names}
    chosen = None if select is None else choose(select, linear, model, argument="select")
    excluded = choose(exclude, linear, model, argument="exclude")
    shared = _sharing(found)
    layers = tuple(
        _planned(layer, _reason(layer, chosen, excluded, min_features), rank, shared)
        for layer in found
    )
    adapted = {layer.name for layer in layers if not layer.reason}
    dense = dense_parameters(
        model, train, frozen=[layer.module for layer in found if layer.name in adapted]
    )
    return Plan(
        layers, dense, total_parameters(model), _step(model, layers, dense, example, machine)
    )


def _step(
    model: nn.Module,
    layers: tuple[PlannedLayer, ...],
    dense: tuple[DenseParameter, ...],
    example: Any,
    machine: Machine | None,
) -> StepCosts | None:
    if example is None:
        return None
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return step_costs(
        model,
        lambda: call(model, example),
        ranks={layer.name: layer.rank for layer in layers if not layer.reason},
        dense=[parameters[p.name] for p in dense],
        machine=machine,
    )


def check_rank(rank: int, argument: str = "rank") -> None:
    """TypeError unless `rank` is an int, ValueError unless it is at least 1."""
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise TypeError(f"`{argument}` must be an int, got {rank!r}")
    if rank < 1:
        raise ValueError(f"`{argument}` must be at least 1, got {rank}")


def _is_map(layer: Layer) -> bool:
    return is_linear(layer.module) or isinstance(layer.module, Factored)


def _reason(layer: Layer, chosen: set[str] | None, excluded: set[str], min_features: int) -> str:
    reason = obstacle(layer)
    if reason:
        return reason
    if chosen is not None and chosen.isdisjoint(layer.names):
        return "not selected"
    if not excluded.isdisjoint(layer.names):
        return "excluded"
    if min(linear_shape(layer.module)) < min_features:
        return f"smaller than min_features={min_features}"
    return ""


def _planned(layer: Layer, reason: str, rank: int, shared: Mapping[str, list[str]]) -> PlannedLayer:
    module = layer.module
    shape = _shape(module)
    if reason:
        return PlannedLayer(layer.name, type(module).__name__, shape, 0, 0, reason, "")
    m, n = shape
    r = min(rank, m, n)
    notes = [f"rank {rank} clipped"] if r < rank else []
    notes += [] if is_plain(module.weight) else ["its weight stays quantised"]
    notes += [f"also named {', '.join(layer.names[1:])}"] if len(layer.names) > 1 else []
    if layer.name in shared:
        notes.append(f"weight shared with {', '.join(shared[layer.name])}, adapted here only")
    kind, size = type(module).__name__, factor_parameters(m, n, r)
    return PlannedLayer(layer.name, kind, shape, r, size, "", "; ".join(notes))


def _shape(module: nn.Module) -> tuple[int, ...]:
    if isinstance(module, Factored):
        return module.shape
    if is_linear(module):
        return linear_shape(module)
    first = next((p for p in module._parameters.values() if p is not None), None)
    return () if first is None else tuple(first.shape)


def _sharing(found: list[Layer]) -> dict[str, list[str]]:
    """For each layer whose weight other modules hold too (tied weights): the names of those.

    An adapter leaves the tied weight alone, so both keep reading the same one.
    """
    holders: dict[int, list[str]] = {}
    for layer in found:
        for p in layer.module._parameters.values():
            if p is not None:
                holders.setdefault(id(p), []).append(layer.name)
    together = [names for names in holders.values() if len(names) > 1]
    return {name: [o for o in names if o != name] for names in together for name in names}


def _row(group: list[PlannedLayer]) -> tuple[str, ...]:
    first, count = group[0], len(group)
    return (
        title(group),
        str(count),
        first.kind,
        "x".join(map(str, first.shape)),
        str(first.rank) if first.rank else "-",
        f"{first.parameters * count:,}" if first.rank else "-",
        first.reason or first.note,
    )
