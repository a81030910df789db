"""Putting what a file says into a model, plain or adapted; checked before anything is changed."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import nn

from rankwise.check.base import fingerprints
from rankwise.distributed.sharded import whole
from rankwise.io.fingerprint import check_base, of_modules
from rankwise.io.state import check_dense_fits, check_fits, put_
from rankwise.io.stored import Stored, StoredLayer, a, join
from rankwise.nn.low_rank import LowRankModule, low_rank_layers
from rankwise.nn.statistics import running_statistics
from rankwise.numerics.factors import Factors
from rankwise.surgery.adapter import adapter_for, factor_like, map_kind, map_obstacle, map_shape
from rankwise.surgery.layers import Layer, parametric_layers, replace_
from rankwise.surgery.select import listing, near_names

Value = TypeVar("Value")


def inside(model: nn.Module, state: Stored, prefix: str) -> Stored:
    """`state` with names as they are in `model`, which holds the model of the file as `prefix`.

    Running statistics that are not in the file stay those of the model.
    """
    if prefix:
        try:
            model.get_submodule(prefix)
        except AttributeError:
            known = listing([name for name, _ in model.named_children()])
            raise ValueError(
                f"`prefix`: the model has no part {prefix!r}; its parts are {known}"
            ) from None
        state = state._replace(
            layers=_renamed(state.layers, prefix),
            dense=_renamed(state.dense, prefix),
            statistics=_renamed(state.statistics, prefix),
            frozen=_renamed(state.frozen, prefix),
        )
    kept = running_statistics(model)
    if not state.foreign:
        kept = {n: t for n, t in kept.items() if prefix and not n.startswith(f"{prefix}.")}
    return state._replace(statistics={**kept, **state.statistics})


def place_(model: nn.Module, state: Stored, *, other_base: bool = False) -> None:
    """Adapt `model` as `state` says if it is plain, and copy `state` into it.

    Raises ValueError, with the model unchanged, where they do not belong together.
    """
    layers = low_rank_layers(model)
    if not layers:
        _adapt_as_stored_(model, state, other_base=other_base)
    else:
        if state.foreign:
            state = with_scales_of(layers, state)
        check_fits(model, state)
        check_untied(model, state)
        if not other_base:
            check_same_base(model, state)
    put_(model, state)


def check_same_base(model: nn.Module, state: Stored) -> None:
    """ValueError unless the frozen weights of `model` are those of `state`, as far as it tells."""
    plain = {
        name: layer.module
        for name, layer in _by_name(model).items()
        if name in state.layers and not isinstance(layer.module, LowRankModule)
    }
    marks = {**of_modules(plain), **fingerprints(model)}
    check_base(state.path, state.fingerprints, marks)
    _check_repeated(model, state)


def with_scales_of(layers: Mapping[str, LowRankModule], state: Stored) -> Stored:
    """The same adapter with the scales that the layers of a model have."""

    def scaled(name: str, entry: StoredLayer) -> StoredLayer:
        layer = layers.get(name)
        if layer is None or layer.scale == entry.scale:
            return entry
        return entry.with_factors(entry.factors.scaled(entry.scale / layer.scale), layer.scale)

    return state._replace(layers={n: scaled(n, entry) for n, entry in state.layers.items()})


def check_adaptable(model: nn.Module, state: Stored, names: Sequence[str]) -> None:
    """ValueError for a layer of these names that is not in `model` or cannot be adapted."""
    named = _by_name(model)
    missing = [name for name in names if not _takes_adapter(named.get(name))]
    if missing:
        raise ValueError(_missing(state, missing, named))
    for name in names:
        _check_adaptable(state, name, named[name])


def adapters_of(model: nn.Module, state: Stored, names: Sequence[str]) -> dict[str, nn.Module]:
    """New layers around those of `model` with these names in `state`, by all of their names.

    Freezes what they are around; `check_adaptable` comes before.
    """
    named = _by_name(model)
    new: dict[str, nn.Module] = {}
    for name in names:
        layer, entry = named[name], state.layers[name]
        like = factor_like(layer.module)
        factors = Factors(*(t.to(like.device, like.dtype) for t in entry.factors))
        new.update(dict.fromkeys(layer.names, adapter_for(layer.module, factors, entry.scale)))
    return new


def _adapt_as_stored_(model: nn.Module, state: Stored, *, other_base: bool) -> None:
    check_dense_fits(model, state)
    check_untied(model, state)
    check_adaptable(model, state, list(state.layers))
    if not other_base:
        check_same_base(model, state)
    new = adapters_of(model, state, list(state.layers))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    model.requires_grad_(False)
    for name in state.dense:
        parameters[name].requires_grad_(True)
    replace_(model, new)


def _check_repeated(model: nn.Module, state: Stored) -> None:
    """What a file of another program says of the base model has to be true of this one."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, value in state.frozen.items():
        layer, _, entry = name.rpartition(".")
        own = parameters.get(name, parameters.get(join(layer, f"base.{entry}")))
        same = own is not None and own.shape == value.shape
        if own is None or not same or not torch.equal(whole(own).cpu(), value.to(own.dtype)):
            had = "no such weight" if own is None else f"another, {tuple(own.shape)}"
            raise ValueError(
                f"{state.path} holds {name!r} {tuple(value.shape)} of the base model that it was "
                f"trained on, and the model has {had}. Give the model this weight first (and the "
                "size, `model.resize_token_embeddings(...)`, if it differs), then load"
            )


def check_untied(model: nn.Module, state: Stored) -> None:
    """ValueError where PEFT trained a copy of what is shared in `model`: a weight or a layer."""
    if not state.foreign:
        return
    parameters = dict(model.named_parameters(remove_duplicate=False))
    holders: dict[int, list[str]] = {}
    for name, p in parameters.items():
        holders.setdefault(id(p), []).append(name)
    for name in state.dense:
        tied = [n for n in holders.get(id(parameters.get(name)), []) if n != name]
        if tied:
            raise ValueError(
                f"{state.path}: {name!r} was trained as a copy, and in the model it is the same as "
                f"{tied[0]!r}. Untie them first: `config.tie_word_embeddings = False`, and give "
                "each a weight of its own"
            )
    for layer in parametric_layers(model):
        found = [name for name in layer.names if name in state.layers]
        others = [name for name in layer.names if name not in found[:1]]
        if found and others:
            raise ValueError(
                f"{state.path}: PEFT adapts {found[0]!r} only, and in the model {others[0]!r} is "
                "the same layer. Give the model a layer of its own there first, `copy.deepcopy`"
            )


def _by_name(model: nn.Module) -> dict[str, Layer]:
    return {name: layer for layer in parametric_layers(model) for name in layer.names}


def _takes_adapter(layer: Layer | None) -> bool:
    return layer is not None and bool(map_kind(layer.module))


def _check_adaptable(state: Stored, name: str, layer: Layer) -> None:
    path, entry = state.path, state.layers[name]
    within = tuple(f"{own}." for own in layer.names)
    held = [n for n in state.dense if n.startswith(within)]
    if held:
        raise ValueError(
            f"{path}: parameter {held[0]!r} belongs to a layer to be adapted, whose own "
            f"are frozen. If {name!r} was low rank as a whole, call `factorize_` on the model first"
        )
    twice = [own for own in layer.names if own != name and own in state.layers]
    if twice:
        raise ValueError(f"{path} holds both {name!r} and {twice[0]!r}, one layer in the model")
    reason = map_obstacle(layer) or ("" if name else "it is the model itself")
    reason = reason or ("" if entry.has_base else "it was saved without a base")
    if getattr(layer.module.weight, "is_meta", False):
        reason = reason or "its weight is on the meta device; load the weights of the model first"
    if state.foreign and any(step != 1 for step in getattr(layer.module, "dilation", ())):
        reason = reason or "it is dilated, and PEFT's kernel beside it is not"
    if reason:
        raise ValueError(f"{path}: layer {name!r} cannot be adapted: {reason}")
    kind = map_kind(layer.module)
    if entry.map != kind:
        raise ValueError(f"{path}: layer {name!r} is {a(entry.map)}, the model's is {a(kind)}")
    shape = map_shape(layer.module)
    if entry.factors.shape != shape:
        raise ValueError(
            f"{path}: layer {name!r} has shape {entry.factors.shape}, the model's has {shape} "
            "(out, in)"
        )
    size = getattr(layer.module, "kernel_size", None)
    if size is not None and (1,) * (2 - len(size)) + tuple(size) != entry.kernel_size:
        raise ValueError(
            f"{path}: layer {name!r} has kernels {entry.kernel_size}, the model's {tuple(size)}"
        )


def _missing(state: Stored, missing: Sequence[str], named: Mapping[str, Layer]) -> str:
    """Says what the model has instead, and which `prefix` would find the layers."""
    first, known = missing[0], [n for n, layer in named.items() if _takes_adapter(layer)]
    more = f" (nor {len(missing) - 1} more of the file)" if len(missing) > 1 else ""
    noun = "linear layer" if state.layers[first].map == "linear" else "layer"
    told = f"{state.path}: the model has no {noun} {first!r}{more}."
    if first in named:
        kind = type(named[first].module).__name__
        return f"{told} It is a {kind} there, which takes no adapter."
    around = [n.removesuffix(first).rstrip(".") for n in known if n.endswith(f".{first}")]
    if around:
        return f"{told} It has {around[0] + '.' + first!r}: write `prefix={around[0]!r}`."
    within = [n for n in known if first.endswith(f".{n}")]
    if within:
        outer = first.removesuffix(max(within, key=len)).rstrip(".")
        return (
            f"{told} It has {max(within, key=len)!r}: the file is of a model that holds this one "
            f"as {outer!r}. Load into that model."
        )
    near = near_names(first, known)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"{told}{hint} Its layers are: {listing(known) or 'none'}. Is this the base model?"


def _renamed(part: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    return {join(prefix, name): value for name, value in part.items()}
