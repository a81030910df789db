"""A compressed model out of its dense twin. Every model card holds this file, as it is."""

import copy
import json
from os import PathLike
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn


def load_plain(model: nn.Module, path: str | PathLike[str]) -> nn.Module:
    """A copy of `model` (dense) with the weights of the file, in thin layers where it has those.

    Tensors that the file holds once for several names are shared in the copy.

    Raises:
        RuntimeError: if the weights do not fit, for example of a model of other widths.
        ValueError: if the file was not written by rankwise, or its thin layers make no whole one.
    """
    with safe_open(path, framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}
        metadata = file.metadata() or {}
    try:
        linear = json.loads(metadata["linear"])
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no 'linear' in its metadata as rankwise writes it") from error
    shared = {name: kept for name, kept in metadata.items() if kept in state}
    state.update({name: state[kept] for name, kept in shared.items()})
    model = copy.deepcopy(model)
    made: dict[int, nn.Module] = {}
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        weights = [state[key] for i in range(3) if (key := f"{name}.{i}.weight") in state]
        if hasattr(layer, "weight") and f"{name}.weight" not in state and weights:
            bias = f"{name}.{len(weights) - 1}.bias" in state
            if id(layer) not in made:
                made[id(layer)] = _thin_layers(layer, weights, bias)
            _put(model, name, made[id(layer)])
        elif type(layer).__name__ == "Conv1D" and name in linear:
            _put(model, name, nn.Linear(layer.nx, layer.nf).train(layer.training))
    for layer in model.modules():
        if isinstance(layer, nn.TransformerEncoderLayer):
            # Its fast path, switched off by this, reads the weights of both and calls neither.
            if {type(layer.linear1), type(layer.linear2)} != {nn.Linear}:
                layer.activation_relu_or_gelu = 0
        elif isinstance(layer, nn.TransformerEncoder) and made:
            layer.use_nested_tensor = False
    # Of names that the model has not, nothing is put anywhere: `load_state_dict` refuses them.
    known = model.state_dict().keys()
    for name, kept in shared.items():
        if name in known and kept in known:
            _put(model, name, model.get_parameter(kept))
    model.load_state_dict(state)
    return model


def _thin_layers(layer: Any, weights: list[Tensor], bias: bool) -> nn.Module:
    """Layers with weights of these shapes in place of one; inner widths are the ranks."""
    shapes = ", ".join(str(tuple(w.shape)) for w in weights)
    if len(weights) < 2 or any(w.ndim != layer.weight.ndim or not w.numel() for w in weights):
        raise ValueError(f"thin layers of {shapes} make no {type(layer).__name__}")
    # A file may hold small tensors of which layers as large as memory would be made.
    first, *_, last = weights
    out, rank = last.shape[:2]
    inner = first.shape[1] if isinstance(layer, nn.Embedding) else first.shape[0]
    if len(weights) == 2 and rank != inner or len(weights) == 3 and rank != len(weights[1]):
        raise ValueError(f"thin layers of {shapes} make no {type(layer).__name__}")
    parts: list[nn.Module]
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        kind: Any = type(layer)
        moves = (layer.stride, layer.padding, layer.dilation)
        into = layer.in_channels
        if len(weights) == 3:
            parts = [kind(into, len(first), 1, bias=False)]
            into = len(first)
        else:
            parts = []
        parts.append(kind(into, rank, layer.kernel_size, *moves, bias=False))
        parts.append(kind(rank, out, 1, bias=bias))
    elif isinstance(layer, nn.Embedding):
        table = nn.Embedding(len(first), rank, padding_idx=layer.padding_idx)
        parts = [table, nn.Linear(rank, out, bias=bias)]
    else:
        parts = [nn.Linear(first.shape[1], rank, bias=False), nn.Linear(rank, out, bias=bias)]
    return nn.Sequential(*parts).to(first.dtype).train(layer.training)


def _put(model: nn.Module, name: str, value: object) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, value)
