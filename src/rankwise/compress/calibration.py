"""Calibrated compression: a few batches say which directions of which layer the loss can spare."""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rankwise.compress.statistics import Statistics
from rankwise.numerics.allocate import Option, allocate, options
from rankwise.numerics.factors import Factors
from rankwise.numerics.weighted import WeightedSVD
from rankwise.surgery.dense_map import DenseMap
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
        if not layer.is_matrix:
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
        hulls = [self._options(name, 1 if price is None else price[name]) for name in self.layers]
        whole = sum(hull[-1].cost for hull in hulls)
        least = sum(hull[0].cost for hull in hulls)
        if keep * whole < least:
            raise ValueError(
                f"`ranks(keep={keep:g})` is too little: one direction in each layer is "
                f"{least / whole:.2g} of them all"
            )
        chosen = allocate(hulls, keep * whole)
        return {n: o.rank for n, o in zip(self.layers, chosen, strict=True) if o.rank}

    def energies(self, name: str) -> Tensor:
        """Loss that dropping each direction of a layer adds, descending, up to a factor."""
        return self.layers[name].sigma.double().square()

    def _options(self, name: str, price: float) -> list[Option]:
        m, n = self.layers[name].shape
        energies = self.energies(name).tolist()
        return options(energies, direction=price * (m + n), whole=price * m * n)


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
    found = find_sites(model)
    sites = _chosen(model, found.sites, select, exclude)
    statistics = {s.name: Statistics(s.map.matrix) for s in sites if s.map is not None}
    requires = {p: p.requires_grad for p in model.parameters()}
    seen = 0
    with watchable(model, found), ExitStack() as stack:
        stack.callback(_restore, requires)
        model.requires_grad_(False)
        draw = torch.Generator().manual_seed(0)
        for site in sites:
            handle = site.module.register_forward_hook(
                _watcher(site, statistics[site.name], max_rows, draw), with_kwargs=True
            )
            stack.callback(handle.remove)
        for batch in batches:
            seen += 1
            report(f"calibration batch {seen}")
            with torch.enable_grad():
                loss(model, batch).backward()
    if not seen:
        raise ValueError("`calibrate(batches=...)` holds no batch")
    layers: dict[str, WeightedSVD] = {}
    for number, site in enumerate(sites, 1):
        if statistics[site.name].places:
            report(f"decomposing layer {number} of {len(sites)}")
            layers[site.name] = _decompose(site, statistics[site.name], damping)
    if not layers:
        raise ValueError("no layer had a gradient: does `loss` depend on the model's output?")
    return Calibration(layers, {name: statistics[name].met for name in layers})


def _chosen(model: nn.Module, sites: list[Site], select: Select, exclude: Select) -> list[Site]:
    modules = {name: site.module for site in sites if site.map for name in site.names}
    names = set(modules) if select is None else choose(select, modules, model, argument="select")
    names -= choose(exclude, modules, model, argument="exclude")
    chosen = [
        site
        for site in sites
        if site.map and not names.isdisjoint(site.names)
        if not (site.obstacle or site.shared or site.map.looked_up)
    ]
    if not chosen:
        raise ValueError("no layer is left to calibrate; `print(rankwise.plan_factorize(model))`")
    return chosen


def _restore(requires: dict[nn.Parameter, bool]) -> None:
    for p, value in requires.items():
        p.requires_grad_(value)


def _watcher(
    site: Site, statistics: Statistics, max_rows: int, draw: torch.Generator
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Tensor], Tensor]:
    """A forward hook that sees the input at once and the output's gradient when it comes."""
    assert site.map is not None
    seen = site.map

    def watch(
        module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], y: Tensor
    ) -> Tensor:
        # A copy: without gradients of weights, nothing keeps a model from writing into its input.
        x = (*inputs, *named.values())[0].detach().clone()
        # Where nothing before it trains, the graph starts here; no leaf, which could not be
        # written into.
        y = y if y.requires_grad else y.detach().requires_grad_().clone()
        statistics.met += y.numel() // seen.shape[0]

        def look(dy: Tensor) -> None:
            part, share = _some(len(dy), dy.numel() // seen.shape[0], 4 * max_rows, draw)
            rows, gradients = seen.gradient_rows(x[part], dy[part])
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


def _decompose(site: Site, statistics: Statistics, damping: tuple[float, float]) -> WeightedSVD:
    if not all(map(math.isfinite, statistics.squares)):
        raise ValueError(f"layer {site.name!r}: inputs or gradients are not finite")
    return statistics.decomposition(damping)
