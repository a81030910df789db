"""Where a model could be low rank as a whole: its matrices, and what stands in their way."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from rankwise.nn.attention import SplitAttention
from rankwise.nn.base import is_intercepted, is_plain
from rankwise.nn.low_rank import LowRankModule
from rankwise.surgery.dense_map import DenseMap, dense_map

FLOATS = (torch.float32, torch.float64)


class Site(NamedTuple):
    """A layer that owns parameters; once for each object."""

    names: tuple[str, ...]
    module: nn.Module
    map: DenseMap | None
    """None for a layer that is no matrix."""
    attention: str
    """The packed attention that has to be split before this layer can be replaced, or ""."""
    obstacle: str
    """Why it has to stay as it is, or ""."""
    shared: tuple[str, ...] = ()
    """Other layers that hold the same weight."""

    @property
    def name(self) -> str:
        return self.names[0]


class Found(NamedTuple):
    """All layers of a model with parameters."""

    sites: list[Site]
    attentions: dict[str, SplitAttention]
    """The twin of every packed attention, by name; its layers are among the sites."""


def find_sites(model: nn.Module) -> Found:
    """All layers with parameters, in the model's order; changes nothing."""
    attentions: dict[str, SplitAttention] = {}
    found: dict[int, Site] = {}
    for name, module, attention in _walk(model, attentions):
        known = found.get(id(module))
        if known is not None:
            found[id(module)] = known._replace(names=(*known.names, name))
        elif isinstance(module, LowRankModule) or module._parameters:
            seen = None if isinstance(module, LowRankModule) else dense_map(module)
            reason = _obstacle(name, module, seen)
            found[id(module)] = Site((name,), module, seen, attention, reason)
    return Found(_with_ties(list(found.values())), attentions)


def _walk(
    model: nn.Module, attentions: dict[str, SplitAttention]
) -> Iterator[tuple[str, nn.Module, str]]:
    """Names and modules, packed attentions by their split twins; and the attention to be split."""
    twins: dict[int, SplitAttention] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if any(name.startswith(f"{inside}.") for inside in attentions):
            continue
        if type(module) is nn.MultiheadAttention and not _unsplittable(module):
            if id(module) not in twins:
                twins[id(module)] = SplitAttention(module)
            attentions[name] = twins[id(module)]
            for child, layer in attentions[name].named_children():
                yield f"{name}.{child}", layer, name
        else:
            yield name, module, _reader(model, name)


def _reader(model: nn.Module, name: str) -> str:
    """The attention whose fast path reads the weight of this layer instead of calling it."""
    parent, _, child = name.rpartition(".")
    if child in ("linear1", "linear2"):
        if isinstance(model.get_submodule(parent), nn.TransformerEncoderLayer):
            return f"{parent}.self_attn" if parent else "self_attn"
    return ""


def _unsplittable(packed: nn.MultiheadAttention) -> bool:
    return packed.bias_k is not None or packed.bias_v is not None or packed.add_zero_attn


def _obstacle(name: str, module: nn.Module, seen: DenseMap | None) -> str:
    if isinstance(module, LowRankModule):
        return f"already low rank ({', '.join(map(str, module.ranks))})"
    if isinstance(module, nn.MultiheadAttention):
        if type(module) is nn.MultiheadAttention:
            return "an attention with bias_k, bias_v or add_zero_attn"
        return f"{type(module).__name__} is a subclass of MultiheadAttention"
    if seen is None:
        return f"{type(module).__name__} is no matrix that rankwise knows"
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed by something else (weight norm, pruning)"
    if weight.dtype not in FLOATS:
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}: call `model.float()`"
    if not is_plain(weight):
        return f"its weight is a {type(weight).__name__}, no plain tensor: load it unquantised"
    if weight.numel() == 0:
        return "is empty"
    if is_intercepted(module):
        return "has hooks or a forward of its own, which would be lost"
    if not name:
        return "it is the model itself: wrap it, `torch.nn.Sequential(layer)`"
    return seen.obstacle


def _with_ties(sites: list[Site]) -> list[Site]:
    holders: dict[int, list[Site]] = {}
    for site in sites:
        for p in site.module._parameters.values():
            if p is not None:
                holders.setdefault(id(p), []).append(site)
    result = []
    for site in sites:
        if site.map is None or site.module._parameters.get("weight") is None:
            result.append(site)
            continue
        others = [o for o in holders[id(site.map.weight)] if o is not site]
        blocked = next((o for o in others if o.obstacle), None)
        if blocked is not None and not site.obstacle:
            reason = f"its weight is also that of {blocked.name}: {blocked.obstacle}"
            site = site._replace(obstacle=reason)
        result.append(site._replace(shared=tuple(o.name for o in others)))
    return result
