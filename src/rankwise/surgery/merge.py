"""Adding adapters to their frozen weights, and taking them out again."""

import warnings

import torch
from torch import Tensor, nn

from rankwise.distributed.sharded import is_sharded
from rankwise.nn.base import is_plain, is_transposed
from rankwise.nn.factored import Factored
from rankwise.nn.low_rank import ORIGINAL
from rankwise.surgery.layers import factored_layers, replace_
from rankwise.surgery.select import listing

PLAIN = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d)


def merge_(model: nn.Module, *, final: bool = False) -> None:
    """Put `W0 + scale * U S V^T` into the base weight of every adapted layer.

    The sum is formed in float32 (float64 for float64 factors) and rounded to the type of `W0`.
    Until `unmerge_`, each layer keeps `W0` too, so its memory doubles; factors get no gradient
    meanwhile. A weight tied to another module is untied, the other module keeps `W0`.

    Args:
        model: with layers from `adapt_`.
        final: replace the layers by their plain bases and forget `W0` and factors; may follow a
            `merge_`. The bases stay frozen.

    Raises:
        ValueError: without adapted layers, when merged already, and for a base that is not plain
            (quantised or subclassed). The model is then unchanged.
    """
    layers = _adapted(model)
    merged = [name for name, layer in layers.items() if layer.merged]
    if merged and not final:
        raise ValueError(f"merged already: {listing(merged)}. Call `unmerge_(model)` first.")
    if final and "" in layers:
        raise ValueError("the model is itself an adapted layer and cannot be replaced in place")
    for name, layer in layers.items():
        _check_plain(name, layer)
    if final:
        _warn_of_ties(model, layers)
    for layer in layers.values():
        if not layer.merged:
            _merge_layer_(layer)
    if final:
        _replace_by_bases_(model)


def unmerge_(model: nn.Module) -> None:
    """Undo `merge_`: the weights are again bit for bit what they were.

    Raises ValueError if there is no adapted layer or one is not merged; nothing changes then.
    """
    layers = _adapted(model)
    unmerged = [name for name, layer in layers.items() if not layer.merged]
    if unmerged:
        raise ValueError(f"not merged: {listing(unmerged)}. Call `merge_(model)` first.")
    for layer in layers.values():
        assert layer.base is not None
        original = getattr(layer, ORIGINAL)
        delattr(layer, ORIGINAL)
        keep = isinstance(original, nn.Parameter)
        layer.base.weight = original if keep else nn.Parameter(original, requires_grad=False)
        layer.merged = False


@torch.no_grad()
def merged_weight(layer: Factored) -> Tensor:
    """`W0 + scale * U S V^T` in the layout and type of the base's weight."""
    assert layer.base is not None
    delta = layer.factors().dense() * layer.scale
    W0 = _weight(layer)
    if is_transposed(layer.base):
        delta = delta.mT
    delta = delta.reshape(W0.shape)
    return (W0.to(delta.dtype) + delta).to(W0.dtype).contiguous()


def _merge_layer_(layer: Factored) -> None:
    # A new parameter instead of an addition in place: a tied weight must not change elsewhere.
    # As a buffer, the old one follows the model to another device and into a copy.
    assert layer.base is not None
    new = nn.Parameter(merged_weight(layer), requires_grad=False)
    layer.register_buffer(ORIGINAL, _weight(layer), persistent=False)
    layer.base.weight = new
    layer.merged = True


def _adapted(model: nn.Module) -> dict[str, Factored]:
    layers = {n: layer for n, layer in factored_layers(model).items() if layer.base is not None}
    if not layers:
        raise ValueError("the model has no adapted layer; `adapt_(model)` makes them")
    return layers


def _check_plain(name: str, layer: Factored) -> None:
    base = layer.base
    assert base is not None
    plain = type(base) in PLAIN or is_transposed(base)
    weight = _weight(layer)
    if is_sharded(weight):
        raise ValueError(
            f"the base of layer {name!r} is sharded over processes, to which no whole matrix can "
            "be added. `save` the adapter on all processes, `load` it in a single one, and merge "
            "there"
        )
    if not plain or not is_plain(weight):
        raise ValueError(
            f"layer {name!r} has a base of type {type(base).__name__} with a weight of type "
            f"{type(weight).__name__} in {weight.dtype}, to which nothing can be added. Load the "
            "model unquantised, `load` the adapter into it, and merge there."
        )


def _warn_of_ties(model: nn.Module, layers: dict[str, Factored]) -> None:
    own = {id(getattr(layer, ORIGINAL, _weight(layer))): name for name, layer in layers.items()}
    bases = {id(layer.base) for layer in layers.values()}
    for module in model.modules():
        for p in module._parameters.values():
            if id(p) in own and id(module) not in bases:
                warnings.warn(
                    f"the weight of {own[id(p)]!r} was tied to one of {type(module).__name__} and "
                    "is not any more. Save the model untied (`tie_word_embeddings=False`), or "
                    "loading will tie it again and drop the adaptation.",
                    stacklevel=3,
                )


def _weight(layer: Factored) -> Tensor:
    assert layer.base is not None and isinstance(layer.base.weight, Tensor)
    return layer.base.weight


def _replace_by_bases_(model: nn.Module) -> None:
    bases: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Factored) and module.base is not None:
            bases[name] = module.base
    replace_(model, bases)
