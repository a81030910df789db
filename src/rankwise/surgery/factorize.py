"""Turning layers into low rank as a whole, in place: `W` becomes `U S V^T`."""

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from rankwise.nn.attention import SplitAttention
from rankwise.nn.base import check_module
from rankwise.nn.conv import LowRankConv2d
from rankwise.nn.low_rank import LowRankModule
from rankwise.nn.tucker import TuckerConv2d
from rankwise.numerics.given import check_number
from rankwise.surgery.dense_map import Conv2dMap, ConvolutionMap, DenseMap
from rankwise.surgery.factorization import Factorization, FactorizedLayer
from rankwise.surgery.init import Init, TruncatedSVD
from rankwise.surgery.layers import replace_
from rankwise.surgery.places import count_places
from rankwise.surgery.ranks import Ranks, agree_, rank_of, ranks_by_name, saves_nothing, unwanted
from rankwise.surgery.select import Select, choose, listing
from rankwise.surgery.sites import Found, Site, find_sites
from rankwise.surgery.tucker_map import TuckerMap

CONVOLUTIONS: dict[type[LowRankModule], type[ConvolutionMap]] = {
    LowRankConv2d: Conv2dMap,
    TuckerConv2d: TuckerMap,
}


def factorize_(
    model: nn.Module,
    *,
    rank: Ranks = 8,
    init: Init | None = None,
    select: Select = None,
    exclude: Select = None,
    min_features: int = 0,
    convolution: type[LowRankModule] = LowRankConv2d,
) -> Factorization:
    """Replace layers by their low-rank form, `W` by `U S V^T`; everything goes on training.

    `nn.Linear`, `nn.Conv1d`, `nn.Conv2d` (its kernel as a matrix, or in Tucker form),
    `nn.Embedding`, the four matrices of `nn.MultiheadAttention` and Hugging Face's `Conv1D`. Layers
    that share a weight go on sharing it. A layer stays dense where its rank would save nothing.

    Args:
        model: changed in place.
        rank: of every layer, >= 1, or a mapping from names of layers to their ranks, of which the
            others stay dense.
        init: where factors start: `rankwise.init.TruncatedSVD()` of the present weight (the
            default), `rankwise.init.Random()` for training from scratch, or a calibration from
            `rankwise.compress`.
        select: which layers: a glob over names or their dotted ends, a compiled regex, a module
            type, a function of (name, module), or a sequence of these; None for all.
        exclude: which of these not.
        min_features: layers with min(m, n) below this are left as they are.
        convolution: what an `nn.Conv2d` becomes: `rankwise.LowRankConv2d`, its kernel one matrix,
            or `rankwise.nn.TuckerConv2d`, low rank in output and in input channels, both of `rank`
            at the start.

    Returns:
        What was done, layer by layer; `print` it.

    Raises:
        ValueError: for a pattern that matches nothing, a name or rank that does not exist, when no
            layer is left. The model is then unchanged.
    """
    init = TruncatedSVD() if init is None else init
    if not isinstance(init, Init):
        raise TypeError(
            f"`init` must be one of `rankwise.init`, such as `rankwise.init.Random()`, got {init!r}"
        )
    _check_model(model)
    found = _found(model, convolution)
    planned = _plan(model, found, rank, select, exclude, min_features, None)
    if not planned.factorized:
        reasons = dict.fromkeys(f"{p.name}: {p.reason}" for p in planned.layers)
        raise ValueError(f"no layer is left to be low rank. {listing(list(reasons))}")
    replace_(model, _replacements(found, planned.ranks, init))
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            _call_its_layers_(module)
    return planned


def _call_its_layers_(encoder: nn.TransformerEncoder) -> None:
    """Turn off nested tensors, for which it reads packed weights of its first layer."""
    if any(isinstance(module, SplitAttention) for module in encoder.modules()):
        encoder.use_nested_tensor = False


def plan_factorize(
    model: nn.Module,
    *,
    rank: Ranks = 8,
    select: Select = None,
    exclude: Select = None,
    min_features: int = 0,
    convolution: type[LowRankModule] = LowRankConv2d,
    example: Any = None,
) -> Factorization:
    """What `factorize_` with the same arguments would do; changes nothing.

    Args:
        model: any model.
        rank: as in `factorize_`.
        select: as in `factorize_`.
        exclude: as in `factorize_`.
        min_features: as in `factorize_`.
        convolution: as in `factorize_`.
        example: an input of the model: a tensor, a tuple of arguments or a dict of named ones. With
            it, products are counted in all places that a layer meets, in one forward pass.
    """
    _check_model(model)
    return _plan(model, _found(model, convolution), rank, select, exclude, min_features, example)


def _found(model: nn.Module, convolution: type[LowRankModule]) -> Found:
    if convolution not in CONVOLUTIONS:
        known = " or ".join(f"`rankwise.nn.{kind.__name__}`" for kind in CONVOLUTIONS)
        raise ValueError(f"`convolution` must be {known}, got {convolution!r}")
    found = find_sites(model)
    seen_by = CONVOLUTIONS[convolution]
    sites = [
        site._replace(map=seen_by(site.module)) if type(site.map) is Conv2dMap else site
        for site in found.sites
    ]
    return found._replace(sites=sites)


def _check_model(model: nn.Module) -> None:
    check_module(model)
    if any(is_lazy(p) for p in model.parameters()):
        raise ValueError("the model has lazy parameters without a shape; run one batch through it")
    if any(p.is_meta for p in model.parameters()):
        raise ValueError("the model has weights on the meta device; load them before `factorize_`")


def _plan(
    model: nn.Module,
    found: Found,
    rank: Ranks,
    select: Select,
    exclude: Select,
    min_features: int,
    example: Any,
) -> Factorization:
    maps = {name: s.module for s in found.sites if s.map is not None for name in s.names}
    check_number("min_features", min_features)
    wanted = ranks_by_name(rank, maps)
    chosen = set(wanted) if select is None else choose(select, maps, model, argument="select")
    excluded = choose(exclude, maps, model, argument="exclude")
    ranks: dict[str, int] = {}
    reasons: dict[str, str] = {}
    for site in found.sites:
        reason = site.obstacle or unwanted(site, wanted, chosen, excluded, min_features)
        reasons[site.name] = reason or saves_nothing(site, wanted)
        ranks[site.name] = 0 if reasons[site.name] else rank_of(site, wanted)
    agree_(found.sites, ranks, reasons)
    places = {} if example is None else count_places(model, found, example)
    counted: set[int] = set()
    layers = [
        _layer(site, ranks[site.name], reasons[site.name], places.get(site.name, 1), counted)
        for site in found.sites
    ]
    total = sum(p.numel() for p in model.parameters())
    return Factorization(tuple(layers), total, example is not None)


def _layer(site: Site, rank: int, reason: str, places: int, counted: set[int]) -> FactorizedLayer:
    kind = type(site.module).__name__
    if site.map is None or site.module._parameters.get("weight") is None:
        return FactorizedLayer(site.name, kind, _shape(site.module), 0, 0, 0, 0, 0, reason, "")
    m, n = site.map.shape
    first = id(site.map.weight) not in counted
    counted.add(id(site.map.weight))
    weights = m * n if first else 0
    kept = site.map.thin_numel(rank) if first and rank else weights
    products = site.map.products * places
    products_kept = site.map.thin_products(rank) * places if rank else products
    notes = [f"also named {', '.join(site.names[1:])}"] if len(site.names) > 1 else []
    notes += [f"one weight with {', '.join(site.shared)}"] if site.shared else []
    notes += ["a lookup was free of products"] if rank and not site.map.products else []
    return FactorizedLayer(
        site.name, kind, (m, n), rank, weights, kept, products, products_kept, reason,
        "; ".join(notes),
    )  # fmt: skip


def _shape(module: nn.Module) -> tuple[int, ...]:
    if isinstance(module, LowRankModule):
        return module.shape
    first = next((p for p in module._parameters.values() if p is not None), None)
    return () if first is None else tuple(first.shape)


@torch.no_grad()
def _replacements(found: Found, ranks: dict[str, int], init: Init) -> dict[str, nn.Module]:
    """By name, in an order in which outer modules come first."""
    split = {
        id(found.attentions[s.attention]) for s in found.sites if s.name in ranks and s.attention
    }
    new: dict[str, nn.Module] = {
        name: twin for name, twin in found.attentions.items() if id(twin) in split
    }
    shared: dict[int, LowRankModule] = {}
    for site in found.sites:
        if site.name not in ranks:
            continue
        assert site.map is not None
        layer = _low_rank(site.name, site.map, ranks[site.name], init, shared)
        new.update(dict.fromkeys(site.names, layer))
    return new


def _low_rank(
    name: str, layer: DenseMap, rank: int, init: Init, shared: dict[int, LowRankModule]
) -> LowRankModule:
    weight = layer.weight
    known = shared.get(id(weight))
    factors = init.factors(name, layer, rank) if known is None else known.factors()
    new = layer.low_rank(factors)
    if known is None:
        shared[id(weight)] = new
    else:
        for entry in new.point_type._fields:
            setattr(new, entry, getattr(known, entry))
    for p in new.factor_parameters():
        p.requires_grad_(weight.requires_grad)
    if new.bias is not None:
        new.bias.requires_grad_(layer.module.bias.requires_grad)
    return new.train(layer.module.training)
