"""What training changes in a model, as tensors and a description; and putting it back.

That is: the factors of matrices and of Tucker kernels, the dense parameters that train, and the
running statistics of normalisation layers. Everything is checked before the model is touched.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rankwise.distributed.anchor import is_anchor
from rankwise.distributed.sharded import sharded_like, whole
from rankwise.io.stored import (
    Stored,
    StoredLayer,
    a,
    check_names,
    check_shape,
    described,
    kind_of,
)
from rankwise.nn.base import is_transposed
from rankwise.nn.conv1d import LowRankConv1d
from rankwise.nn.embedding import LowRankEmbedding
from rankwise.nn.low_rank import LowRankModule, low_rank_layers
from rankwise.nn.statistics import running_statistics
from rankwise.numerics.fingerprint import fingerprint


def trained_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by name, and the description that `stored` needs to read them back."""
    return described(trained_state(model))


def check_unwrapped(model: nn.Module) -> None:
    """ValueError for a model in DDP."""
    if isinstance(model, DistributedDataParallel):
        raise ValueError(
            "the model is wrapped in DistributedDataParallel, and all names in the file would "
            "begin with 'module.': give the model inside, `ddp.module`"
        )


def trained_state(model: nn.Module) -> Stored:
    """What training changes in `model`, not checked; the tensors are those of the model.

    Sharded ones are gathered: then all processes have to call it.
    """
    check_unwrapped(model)
    layers = {name: entry_of(layer) for name, layer in low_rank_layers(model).items()}
    dense = {name: whole(p) for name, p in dense_trained(model).items()}
    return Stored("the model", layers, dense, running_statistics(model), {})


def entry_of(layer: LowRankModule) -> StoredLayer:
    """What a file says of `layer`; the factors share memory with it."""
    transposed = layer.base is not None and is_transposed(layer.base)
    return StoredLayer(
        layer.factors(),
        layer.scale,
        layer.base is not None,
        layer.kernel_size,
        map_of(layer),
        transposed,
        None if layer.frozen is None else fingerprint(whole(layer.frozen)),
    )


def map_of(layer: LowRankModule) -> str:
    """One of `MAPS`."""
    if isinstance(layer, LowRankEmbedding):
        return "embedding"
    if isinstance(layer, LowRankConv1d):
        return "conv1d"
    return "linear" if layer.kernel_size is None else "conv2d"


def check_fits(model: nn.Module, state: Stored) -> None:
    """ValueError unless the adapted `model` can take `state`; ranks may differ."""
    path, layers = state.path, low_rank_layers(model)
    check_names(path, set(layers), set(state.layers), "low-rank layer")
    for name, layer in layers.items():
        new = state.layers[name]
        if not isinstance(new.factors, layer.point_type):
            raise ValueError(
                f"{path}: layer {name!r} was saved as a {kind_of(type(new.factors))}, the model "
                f"has a {kind_of(layer.point_type)}"
            )
        check_shape(path, name, new.factors.shape, layer.shape)
        if new.scale != layer.scale:
            raise ValueError(
                f"{path}: layer {name!r} was saved with scale {new.scale:g}, the model has "
                f"{layer.scale:g}. Adapt with that scale, or load into a model without adapters."
            )
        if new.has_base != (layer.base is not None):
            raise ValueError(f"{path}: layer {name!r} has a base in only one of file and model")
        if new.kernel_size != layer.kernel_size or new.factors.places != layer.factors().places:
            raise ValueError(
                f"{path}: layer {name!r} was saved with kernel size {new.kernel_size}, the model "
                f"has {layer.kernel_size}"
            )
        if new.map and new.map != map_of(layer):
            raise ValueError(
                f"{path}: layer {name!r} is {a(new.map)}, the model has {a(map_of(layer))}"
            )
        if layer.merged:
            raise ValueError(f"layer {name!r} is merged; call `unmerge_(model)` before loading")
    trained = set(dense_trained(model))
    if trained - set(state.dense):
        raise ValueError(
            f"{path} has no {min(trained - set(state.dense))!r}, which trains in the model"
        )
    check_dense_fits(model, state)


def check_dense_fits(model: nn.Module, state: Stored) -> None:
    """ValueError unless the dense parameters and statistics of `state` are in `model`."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, value in state.dense.items():
        _check_target(state.path, name, value, parameters.get(name), "parameter")
    statistics = running_statistics(model)
    check_names(state.path, set(statistics), set(state.statistics), "running statistic")
    for name, value in state.statistics.items():
        _check_target(state.path, name, value, statistics[name], "buffer")


@torch.no_grad()
def put_(model: nn.Module, state: Stored) -> None:
    """Copy `state` into an adapted model that `check_fits` accepts."""
    for name, layer in low_rank_layers(model).items():
        like = layer.U
        layer.set_factors_([t.to(like.device, like.dtype) for t in state.layers[name].factors])
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, value in state.dense.items():
        parameters[name].copy_(sharded_like(value, parameters[name]))
    for name, buffer in running_statistics(model).items():
        buffer.copy_(state.statistics[name])


def dense_trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters that are not factors."""
    layers = low_rank_layers(model)
    factors = {id(p) for layer in layers.values() for p in layer.factor_parameters()}
    return {
        n: p
        for n, p in model.named_parameters()
        if p.requires_grad and id(p) not in factors and not is_anchor(n)
    }


def _check_target(
    path: Path | str, name: str, value: Tensor, target: Tensor | None, what: str
) -> None:
    if target is None:
        raise ValueError(f"{path}: the model has no {what} {name!r}")
    if value.shape != target.shape:
        raise ValueError(
            f"{path}: {what} {name!r} has shape {tuple(value.shape)}, the model's has "
            f"{tuple(target.shape)}"
        )
    if value.is_floating_point() != target.is_floating_point():
        raise ValueError(f"{path}: {what} {name!r} is {value.dtype}, the model's is {target.dtype}")
