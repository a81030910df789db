"""From factors back to plain PyTorch: whole weights, or two thin layers in place of one."""

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from rankwise.nn.attention import SplitAttention
from rankwise.nn.base import check_module
from rankwise.nn.low_rank import LowRankModule
from rankwise.surgery.layers import replace_
from rankwise.surgery.select import listing

Model = TypeVar("Model", bound=nn.Module)


def densify_(model: nn.Module) -> None:
    """Replace every low-rank layer by the plain layer with the weight `U S V^T`, in place.

    The model computes what it did and needs rankwise no more; nothing is smaller or faster. Layers
    that share factors share the weight afterwards.

    Raises:
        ValueError: without low-rank layers, for adapters (`merge_(model, final=True)` ends those),
            and for a model that is itself a low-rank layer. The model is then unchanged.
    """
    _replace_all_(model, lambda layer: layer.dense_layer())


def shrink(model: Model) -> Model:
    """A copy in which every low-rank layer is two plain thin layers in an `nn.Sequential`.

    `W = B A` with `B` (m, r), `A` (r, n): an `nn.Linear` becomes two, a convolution one with r
    kernels and one of size 1, an embedding a narrow table and an `nn.Linear`; one in Tucker form
    becomes three convolutions. The copy computes what the model does, loads and runs without
    rankwise, and exports as any model does. A layer whose rank would save nothing becomes dense.
    Of a weight that an embedding shares with a linear layer, `B` stays shared; `A` is held by both,
    for one needs it transposed.
    An `nn.MultiheadAttention` with a low-rank matrix has no plain form: it stays rankwise's
    `SplitAttention`, with plain layers in it (`torch.export` frees it of that too).

    Raises:
        ValueError: as `densify_`.
    """
    _check(model)
    small = copy.deepcopy(model)
    _replace_all_(small, _thin)
    for module in small.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            _call_its_layers_(module)
    return small


def _call_its_layers_(layer: nn.TransformerEncoderLayer) -> None:
    """Turn off the fast path, which reads the weights of `linear1` and `linear2`, if one is two."""
    if type(layer.linear1) is not nn.Linear or type(layer.linear2) is not nn.Linear:
        layer.activation_relu_or_gelu = 0


def _thin(layer: LowRankModule) -> nn.Module:
    return layer.thin_layers() if layer.thin_numel < layer.dense_numel else layer.dense_layer()


@torch.no_grad()
def _replace_all_(model: nn.Module, plain: Callable[[LowRankModule], nn.Module]) -> None:
    layers = _check(model)
    made: dict[int, nn.Module] = {}
    first: dict[int, nn.Module] = {}
    for layer in layers.values():
        if id(layer) not in made:
            made[id(layer)] = new = plain(layer)
            for p in new.parameters():
                if p.ndim > 1:
                    p.requires_grad_(layer.U.requires_grad)
            _share_weights_(first.setdefault(id(layer.U), new), new)
    replace_(model, {name: made[id(layer)] for name, layer in layers.items()})
    _pack_(model)


def _pack_(model: nn.Module) -> None:
    """Attentions of plain layers alone become torch's own again, each object once."""
    packed: dict[int, nn.MultiheadAttention | None] = {}
    names: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, SplitAttention):
            if id(module) not in packed:
                packed[id(module)] = module.packed()
            new = packed[id(module)]
            if new is not None:
                names[name] = new
    replace_(model, names)


def _check(model: nn.Module) -> dict[str, LowRankModule]:
    check_module(model)
    layers = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, LowRankModule)
    }
    if not layers:
        raise ValueError("the model has no low-rank layer; `factorize_(model)` makes them")
    if "" in layers:
        raise ValueError(
            "the model is itself a low-rank layer, which cannot be replaced inside itself: use "
            "`layer.thin_layers()` or `layer.dense_layer()`"
        )
    adapters = [name for name, layer in layers.items() if layer.base is not None]
    if adapters:
        raise ValueError(
            f"{listing(adapters)}: an adapter is added to a weight. `merge_(model, final=True)` "
            "puts it in there."
        )
    return layers


def _share_weights_(known: nn.Module, new: nn.Module) -> None:
    """Give `new` the very weights of `known` that its own are equal to; biases are its own."""
    if known is new:
        return
    for module in new.modules():
        for name, p in module._parameters.items():
            if p is None or p.ndim < 2:
                continue
            same = [q for q in known.parameters() if torch.equal(p, q)]
            if same:
                setattr(module, name, same[0])
