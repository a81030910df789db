"""Out of a model, and into it."""

import torch
from torch import nn

from rankwise.adapters.adapter import Adapter, check_adapter
from rankwise.io.placing import (
    adapters_of,
    check_adaptable,
    check_same_base,
    check_untied,
    inside,
    place_,
    with_scales_of,
)
from rankwise.io.state import check_fits, entry_of, trained_tensors
from rankwise.io.state import put_ as copy_into_
from rankwise.io.stored import Stored, stored
from rankwise.nn.base import check_module
from rankwise.nn.low_rank import LowRankModule, low_rank_layers
from rankwise.nn.statistics import running_statistics
from rankwise.optim.ownership import owner_of
from rankwise.surgery.layers import replace_


def take(model: nn.Module) -> Adapter:
    """A copy of what `model` has learned: factors, dense parameters that train, statistics.

    It is what `rankwise.save` would write, and shares no memory with the model.

    Raises:
        ValueError: for a model without low-rank layers, or with values that are not finite.
    """
    check_model(model)
    if not low_rank_layers(model):
        raise ValueError("the model has no low-rank layer to take; `adapt_(model)` makes them")
    tensors, content = trained_tensors(model)
    copies = {name: t.detach().clone() for name, t in tensors.items()}
    return Adapter(stored("the adapter", copies, content))


@torch.no_grad()
def put_(model: nn.Module, adapter: Adapter, *, prefix: str = "", other_base: bool = False) -> None:
    """Make `model` what it is with `adapter`, in place of any other.

    What `take` gave comes back bit for bit. A plain model is adapted, and frozen but for the
    factors and the adapter's dense parameters. In an adapted model layers that the adapter lacks
    become zero, and layers that the model lacks are added, unless an optimizer trains it. Factors
    get the type and device of the model, and the scale of its layers.

    An optimizer goes on if it finds the factors as it left them: put another adapter in to try it,
    and the first one back before the next step.

    Args:
        model: plain or adapted, not merged.
        adapter: of the same base model.
        prefix: if `model` wraps the model that the adapter is of: the name of that part.
        other_base: put it on another base on purpose, such as one trained further.

    Raises:
        ValueError: naming a layer or parameter that does not fit; the model is then unchanged.
    """
    check_model(model)
    check_adapter(adapter, "`rankwise.adapters.read(folder)` reads one")
    state = inside(model, adapter.stored, prefix.rstrip("."))
    if not adapter.stored.statistics:
        state = state._replace(statistics=running_statistics(model))
    layers = low_rank_layers(model)
    if not layers:
        place_(model, state, other_base=other_base)
        return
    missing = [name for name in state.layers if name not in layers]
    if missing and any(owner_of(layer) is not None for layer in layers.values()):
        raise ValueError(
            f"{state.path} has {missing[0]!r}, which is not adapted in the model, and the "
            "optimizer of the model would not train it. Delete the optimizer first, or adapt all "
            "layers before you make it"
        )
    full = with_scales_of(layers, _with_zeros(layers, state))
    check_fits(model, full._replace(layers={n: x for n, x in full.layers.items() if n in layers}))
    check_untied(model, state)
    check_adaptable(model, state, missing)
    if not other_base:
        check_same_base(model, state)
    replace_(model, adapters_of(model, full, missing))
    copy_into_(model, full)


def check_model(model: object) -> None:
    """TypeError for anything else than a module."""
    check_module(model)


def _with_zeros(layers: dict[str, LowRankModule], state: Stored) -> Stored:
    """`state` with the zero update of every layer of the model that it lacks."""
    zeros = {}
    for name, layer in layers.items():
        if name in state.layers:
            continue
        if layer.base is None:
            raise ValueError(
                f"{state.path} has no {name!r}, which is a whole weight in factors in the model"
            )
        entry = entry_of(layer)
        zeros[name] = entry.with_factors(entry.factors.scaled(0.0), entry.scale)
    return state._replace(layers={**state.layers, **zeros})
