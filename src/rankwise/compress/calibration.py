"""Calibrated compression: a few batches say which directions of which layer the loss can spare."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from rankwise.compress.statistics import Statistics
from rankwise.nn.base import check_module
from rankwise.numerics.allocate import Option, allocate, options
from rankwise.numerics.factors import Factors
from rankwise.numerics.given import check_loss
from rankwise.numerics.weighted import WeightedSVD
from rankwise.surgery.dense_map import DenseMap, RowMap
from rankwise.surgery.init import Init
from rankwise.surgery.select import Select, choose
from rankwise.surgery.sites import Site, find_sites
from rankwise.surgery.watch import watchable

Batch = TypeVar("Batch")
DAMPING = (0.01, 0.1)


@dataclass(frozen=True)
class Calibration(Init):
    """What `calibrate` found; the `init` of `factorize_`, and the source of ranks.

    Attributes:
        layers: weighted SVD of each layer; `sigma^2` is the loss that dropping a direction
            adds, up to a factor that all layers share.
        places: vectors that each layer put out while calibrating; with them as the price of a
            weight, `ranks` shares out products.
    """

    layers: Mapping[str, WeightedSVD]
    places: Mapping[str, int]

    def factors(self, name: str, layer: DenseMap, rank: int) -> Factors:
        if name not in self.layers:
            raise ValueError(f"layer {name!r} was not calibrated: select it in `calibrate` too")
        if not isinstance(layer, RowMap):
            raise ValueError(
                f"layer {name!r}: a calibration cuts kernels as matrices; leave `convolution` out"
            )
        if not self.layers[name].stands_for(layer.matrix):
            raise ValueError(
                f"the weight of layer {name!r} is not the one that was calibrated: calibrate the "
                "model as it is now"
            )
        return self.layers[name].cut(rank)

    def ranks(self, keep: float, *, price: Mapping[str, float] | None = None) -> dict[str, int]:
        """Ranks of least loss for a share of what all calibrated layers cost together.

        Args:
            keep: share of the cost that is kept, in (0, 1].
            price: what one number in a layer's weight costs; by default 1 for every layer, so that
                parameters are shared out; with `places`, products.

        Returns:
            The layers that become low rank and their ranks; the others are worth more whole.
        """
        if not 0.0 < keep <= 1.0:
            raise ValueError(f"`ranks(keep=...)` is a share in (0, 1], got {keep}")
        least = self.least_share(price)
        if keep < least:
            raise ValueError(
                f"`ranks(keep={keep:g})` is too little: one direction in each layer is "
                f"{least:.2g} of them all"
            )
        hulls = self._hulls(price)
        chosen = allocate(hulls, keep * sum(hull[-1].cost for hull in hulls))
        return {n: o.rank for n, o in zip(self.layers, chosen, strict=True) if o.rank}

    def least_share(self, price: Mapping[str, float] | None = None) -> float:
        """The share that one direction in each layer costs; prices as in `ranks`."""
        hulls = self._hulls(price)
        return sum(hull[0].cost for hull in hulls) / sum(hull[-1].cost for hull in hulls)

    def energies(self, name: str) -> Tensor:
        """Loss that dropping each direction of a layer adds, descending, up to a factor."""
        return self.layers[name].sigma.double().square()

    def _hulls(self, price: Mapping[str, float] | None) -> list[list[Option]]:
        hulls = []
        for name, layer in self.layers.items():
            (m, n), cost = layer.shape, 1 if price is None else price[name]
            energies = self.energies(name).tolist()
            hulls.append(options(energies, direction=cost * (m + n), whole=cost * m * n))
        return hulls


def calibrate(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    *,
    select: Select = None,
    exclude: Select = None,
    damping: tuple[float, float] = DAMPING,
    max_rows: int = 4096,
    report: Callable[[str], None] = lambda message: None,
) -> Calibration:
    """Run `batches` through `model` and decompose every layer in the metric of the loss.

    Each layer's `W` is approximated in `||L (W - W') R^T||_F`, with `R^T R` the mean of `x x^T`
    over its inputs and `L^T L` that of `d d^T` over the gradients of its outputs, both from QR
    decompositions. The model is not changed, nor are gradients of its parameters.

    Args:
        model: dense; embeddings, layers that share their weight, and those that no batch reaches
            are left out.
        batches: a few hundred rows like those that the model is for.
        loss: of the model on a batch, a mean over as many targets in every batch. Best one of
            labels drawn from the model itself, `rankwise.compress.sampled_cross_entropy(logits)`.
        select: which layers, as in `factorize_`.
        exclude: which of these not.
        damping: parts of the mean square of inputs, and of gradients of outputs, that are added to
            every direction, > 0: a few batches do not see all that matter.
        max_rows: places of a layer that are used of one batch; more are sampled down.
        report: is told what is going on.

    Raises:
        ValueError: without batches or layers, and for statistics that are not finite.
    """
    if not min(damping) > 0:
        raise ValueError(f"`calibrate(damping=...)` must be two positive numbers, got {damping}")
    check_module(model)
    found = find_sites(model)
    sites = _chosen(model, found.sites, select, exclude)
    statistics = {name: Statistics(layer.matrix) for name, (layer, _) in sites.items()}
    seen = 0
    with watchable(model, found), _frozen(model), ExitStack() as hooks:
        draw = torch.Generator().manual_seed(0)
        for name, (layer, module) in sites.items():
            watch = _watcher(layer, statistics[name], max_rows, draw)
            hooks.callback(module.register_forward_hook(watch, with_kwargs=True).remove)
        for seen, batch in enumerate(batches, 1):
            report(f"calibration batch {seen}")
            with torch.enable_grad():
                found_loss = loss(model, batch)
                check_loss("calibrate(loss=...)", found_loss)
                found_loss.backward()
    if not seen:
        raise ValueError("`calibrate(batches=...)` holds no batch")
    met = {name: found for name, found in statistics.items() if found.places}
    if not met:
        raise ValueError("no layer had a gradient: does `loss` depend on the model's output?")
    layers: dict[str, WeightedSVD] = {}
    for number, name in enumerate(met, 1):
        report(f"decomposing layer {number} of {len(met)}")
        layers[name] = _decompose(name, met[name], damping)
    return Calibration(layers, {name: found.met for name, found in met.items()})


class Watched(NamedTuple):
    """A layer to calibrate: its matrix, and the module that is called."""

    map: RowMap
    module: nn.Module


def _chosen(
    model: nn.Module, sites: list[Site], select: Select, exclude: Select
) -> dict[str, Watched]:
    modules = {name: site.module for site in sites if site.map for name in site.names}
    names = set(modules) if select is None else choose(select, modules, model, argument="select")
    names -= choose(exclude, modules, model, argument="exclude")
    chosen = {
        site.name: Watched(site.map, site.module)
        for site in sites
        if isinstance(site.map, RowMap) and not names.isdisjoint(site.names)
        if not (site.obstacle or site.shared)
    }
    if not chosen:
        raise ValueError("no layer is left to calibrate; `print(rankwise.plan_factorize(model))`")
    return chosen


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Within, no parameter gets a gradient; afterwards those do that did."""
    requires = {p: p.requires_grad for p in model.parameters()}
    try:
        model.requires_grad_(False)
        yield
    finally:
        for p, value in requires.items():
            p.requires_grad_(value)


def _watcher(
    layer: RowMap, statistics: Statistics, max_rows: int, draw: torch.Generator
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Tensor], Tensor]:
    """A forward hook that sees the input at once and the output's gradient when it comes."""

    def watch(
        module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], y: Tensor
    ) -> Tensor:
        # A copy: without gradients of weights, nothing keeps a model from writing into its input.
        x = (*inputs, *named.values())[0].detach().clone()
        # Where nothing before it trains, the graph starts here; no leaf, which could not be
        # written into.
        y = y if y.requires_grad else y.detach().requires_grad_().clone()
        statistics.met += y.numel() // layer.width

        def look(dy: Tensor) -> None:
            x_items, dy_items = layer.items(x), layer.items(dy)
            count = dy.numel() // layer.width
            part, share = _some(len(dy_items), count, 4 * max_rows, draw)
            rows, gradients = layer.gradient_rows(x_items[part], dy_items[part])
            # Places without a gradient (padding, dead units) have no say in the loss.
            places = gradients.any(1).nonzero().flatten()
            statistics.places += share * len(places)
            if len(places) > max_rows:
                places = places[torch.randperm(len(places), generator=draw)[:max_rows]]
            statistics.add(rows[places], gradients[places])

        y.register_hook(look)
        return y

    return watch


def _some(
    items: int, places: int, most: int, draw: torch.Generator
) -> tuple[Tensor | slice, float]:
    """Items with about `most` places together, and the factor of what they stand for.

    Patches of all images of a batch would take many times their memory.
    """
    kept = max(1, items * most // max(places, 1))
    if kept >= items:
        return slice(None), 1.0
    return torch.randperm(items, generator=draw)[:kept], items / kept


def _decompose(name: str, statistics: Statistics, damping: tuple[float, float]) -> WeightedSVD:
    if not bool(statistics.squares.isfinite().all()):
        raise ValueError(f"layer {name!r}: inputs or gradients are not finite")
    return statistics.decomposition(damping)
