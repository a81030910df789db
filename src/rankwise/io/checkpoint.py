"""The adapter file: what `adapt_` and training have added to a model."""

from pathlib import Path

from torch import nn

from rankwise.check.base import fingerprints
from rankwise.io.document import read_document, write_document
from rankwise.io.fingerprint import check_base, of_modules
from rankwise.io.state import (
    Stored,
    StoredLayer,
    check_dense_fits,
    check_fits,
    put_,
    stored,
    trained_tensors,
)
from rankwise.nn.base import is_linear, linear_shape
from rankwise.numerics.factors import Factors
from rankwise.surgery.adapt import adapter_for, factor_like
from rankwise.surgery.layers import (
    Layer,
    low_rank_layers,
    obstacle,
    parametric_layers,
    replace_,
)

FILE_NAME = "adapter.safetensors"
FORMAT = "rankwise-adapter"
VERSION = 1


def save(model: nn.Module, folder: str | Path) -> Path:
    """Write `adapter.safetensors`: factors as `<layer>.U/.S/.V`, and what else trains in `model`.

    Dense parameters that train and the running statistics of batch norms are in it under their
    own names; frozen weights are not. The file appears atomically.

    Args:
        model: with low-rank layers; merged or not, the factors are saved.
        folder: made if need be; a path that ends in `.safetensors` is the file itself.

    Returns:
        The path of the file.

    Raises:
        ValueError: without low-rank layers, and for values that `load` would refuse. An earlier
            file stays as it is.
    """
    if not low_rank_layers(model):
        raise ValueError("the model has no low-rank layer to save; `adapt_(model)` makes them")
    path = _file(folder)
    tensors, content = trained_tensors(model)
    stored(path, tensors, content)
    write_document(path, tensors, content, format=FORMAT, version=VERSION)
    return path


def load(model: nn.Module, folder: str | Path, *, other_base: bool = False) -> None:
    """Put an adapter file into `model`; ranks follow the file.

    A plain model is adapted as the file says, and frozen but for the factors and the dense
    parameters in the file. In an adapted model the layers must be the same. Everything is checked
    first: after an error the model is unchanged.

    An adapter is a difference to one base, and on another it is silently wrong, which no shape
    tells. So a file holds some entries of each frozen weight, and another weight is an error, not
    a warning that scrolls by. The same model in another precision is fine; a quantised one cannot
    be compared and is taken as it is, like files from before there were these entries.

    Args:
        model: plain or adapted.
        folder: a folder with `adapter.safetensors`, or the file.
        other_base: take the adapter to another base on purpose, such as one trained further.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file and entry, if something is missing, unexpected, of the wrong shape,
            not finite or not orthonormal, the file is of another format or version, or its
            adapters were trained on another base.
    """
    document = read_document(_file(folder), format=FORMAT, version=VERSION)
    if document.content.get("layers") == {}:
        raise ValueError(f"{document.path}: 'layers' of the metadata must name layers, got none")
    state = stored(document.path, document.tensors, document.content)
    if low_rank_layers(model):
        check_fits(model, state)
        if not other_base:
            check_base(state.path, state.fingerprints, fingerprints(model))
    else:
        _adapt_as_stored_(model, state, other_base=other_base)
    put_(model, state)


def _file(folder: str | Path) -> Path:
    path = Path(folder)
    return path if path.suffix == ".safetensors" or path.is_file() else path / FILE_NAME


def _adapt_as_stored_(model: nn.Module, state: Stored, *, other_base: bool) -> None:
    check_dense_fits(model, state)
    named = {name: layer for layer in parametric_layers(model) for name in layer.names}
    for name, entry in state.layers.items():
        _check_adaptable(state.path, name, entry, named.get(name))
    inside = [n for n in state.dense for layer in state.layers if n.startswith(f"{layer}.")]
    if inside:
        raise ValueError(f"{state.path}: parameter {inside[0]!r} belongs to a layer to be adapted")
    if not other_base:
        bases = {name: named[name].module for name in state.layers}
        check_base(state.path, state.fingerprints, of_modules(bases))
    new: dict[str, nn.Module] = {}
    for name, entry in state.layers.items():
        layer = named[name]
        like = factor_like(layer.module)
        factors = Factors(*(t.to(like.device, like.dtype) for t in entry.factors))
        new.update(dict.fromkeys(layer.names, adapter_for(layer.module, factors, entry.scale)))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    model.requires_grad_(False)
    for name in state.dense:
        parameters[name].requires_grad_(True)
    replace_(model, new)


def _check_adaptable(path: Path, name: str, entry: StoredLayer, layer: Layer | None) -> None:
    if layer is None or not is_linear(layer.module):
        raise ValueError(f"{path}: the model has no linear layer {name!r}")
    reason = obstacle(layer) or ("" if name else "it is the model itself")
    reason = reason or ("" if entry.has_base else "it was saved without a base")
    if reason:
        raise ValueError(f"{path}: layer {name!r} cannot be adapted: {reason}")
    if entry.factors.shape != linear_shape(layer.module):
        raise ValueError(
            f"{path}: layer {name!r} has shape {entry.factors.shape}, the model's has "
            f"{linear_shape(layer.module)} (out, in)"
        )
