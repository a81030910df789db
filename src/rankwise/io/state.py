"""What training changes in a model, as tensors and a description; and putting it back.

That is: the factors of matrices and of Tucker kernels, the dense parameters that train, and the
running statistics of normalisation layers. Everything is checked before the model is touched.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from rankwise.check.base import fingerprints
from rankwise.io.fingerprint import from_entry, to_text
from rankwise.numerics.factors import Factors, orthonormality_defect
from rankwise.numerics.fingerprint import Fingerprint
from rankwise.numerics.tucker import Tucker
from rankwise.surgery.layers import low_rank_layers

MAX_DEFECT = 1e-3

KINDS: Mapping[str, type[Factors] | type[Tucker]] = {"matrix": Factors, "tucker": Tucker}
"""Kinds of weights; the entries of a layer are named as the fields of its point. A file without a
kind is from before there were two."""


class StoredLayer(NamedTuple):
    """One low-rank layer of a file."""

    factors: Factors | Tucker
    scale: float
    has_base: bool
    kernel_size: tuple[int, ...] | None
    fingerprint: Fingerprint | None
    """Of the frozen weight that the adapter was trained on, if it has one that can be compared."""


class Stored(NamedTuple):
    """What a file says of a model, checked in itself."""

    path: Path
    layers: dict[str, StoredLayer]
    dense: dict[str, Tensor]
    statistics: dict[str, Tensor]

    @property
    def fingerprints(self) -> dict[str, Fingerprint | None]:
        return {name: layer.fingerprint for name, layer in self.layers.items() if layer.has_base}


def trained_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by name, and the description that `stored` needs to read them back."""
    layers = low_rank_layers(model)
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        tensors.update({join(name, key): t for key, t in layer.factors()._asdict().items()})
    dense, statistics = dense_trained(model), running_statistics(model)
    marks = {name: to_text(mark) for name, mark in fingerprints(model).items() if mark is not None}
    described = {
        name: {
            "kind": _kind(layer.point_type),
            "scale": layer.scale,
            "shape": list(layer.shape),
            "base": layer.base is not None,
            **({} if layer.kernel_size is None else {"kernel_size": list(layer.kernel_size)}),
            **({"fingerprint": marks[name]} if name in marks else {}),
        }
        for name, layer in layers.items()
    }
    content = {"layers": described, "dense": list(dense), "statistics": list(statistics)}
    return {**tensors, **dense, **statistics}, content


def stored(path: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> Stored:
    """The inverse of `trained_tensors`; ValueError, with file and entry, for anything amiss."""
    described = content.get("layers")
    dense, statistics = (_names(path, content, key) for key in ("dense", "statistics"))
    if not isinstance(described, dict):
        raise ValueError(f"{path}: 'layers' of the metadata must name layers, got {described!r}")
    types = {name: _point_type(path, name, entry) for name, entry in described.items()}
    expected = [join(n, entry) for n, point in types.items() for entry in point._fields]
    expected += dense + statistics
    twice = {name for name in expected if expected.count(name) > 1} if _repeats(expected) else set()
    if twice:
        raise ValueError(f"{path}: entry {min(twice)!r} is described twice")
    check_names(path, set(expected), set(tensors), "tensor")
    layers = {
        name: _layer(path, name, entry, types[name], tensors) for name, entry in described.items()
    }
    for name in dense + statistics:
        if tensors[name].is_floating_point() and not bool(tensors[name].isfinite().all()):
            raise ValueError(f"{path}: entry {name!r} has NaN or infinite values")
    return Stored(path, layers, {n: tensors[n] for n in dense}, {n: tensors[n] for n in statistics})


def check_fits(model: nn.Module, state: Stored) -> None:
    """ValueError unless the adapted `model` can take `state`; ranks may differ."""
    path, layers = state.path, low_rank_layers(model)
    check_names(path, set(layers), set(state.layers), "low-rank layer")
    for name, layer in layers.items():
        new = state.layers[name]
        if not isinstance(new.factors, layer.point_type):
            raise ValueError(
                f"{path}: layer {name!r} was saved as a {_kind(type(new.factors))}, the model has "
                f"a {_kind(layer.point_type)}"
            )
        _check_shape(path, name, new.factors.shape, layer.shape)
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
        parameters[name].copy_(value)
    for name, buffer in running_statistics(model).items():
        buffer.copy_(state.statistics[name])


def dense_trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters that are not factors."""
    layers = low_rank_layers(model)
    factors = {id(p) for layer in layers.values() for p in layer.factor_parameters()}
    return {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) not in factors}


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that a forward pass in training changes: those of batch and instance norms."""
    return {
        join(name, key): buffer
        for name, module in model.named_modules()
        if isinstance(module, _NormBase)
        for key, buffer in module.named_buffers(recurse=False)
    }


def join(name: str, entry: str) -> str:
    """Name of an entry of the module `name`; the model itself has the name ""."""
    return f"{name}.{entry}" if name else entry


def check_names(path: Path, expected: set[str], got: set[str], what: str) -> None:
    """ValueError that names one missing and one unexpected entry, if there are any."""
    missing, unexpected = sorted(expected - got), sorted(got - expected)
    problems = []
    if missing:
        problems.append(f"{what} {missing[0]!r} is missing{_and_more(missing)}")
    if unexpected:
        problems.append(f"{what} {unexpected[0]!r} is unexpected{_and_more(unexpected)}")
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _repeats(names: list[str]) -> bool:
    return len(set(names)) < len(names)


def _names(path: Path, content: Mapping[str, Any], key: str) -> list[str]:
    names = content.get(key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: {key!r} of the metadata must be a list of names, got {names!r}")
    return names


def _kind(point_type: type) -> str:
    return next(kind for kind, known in KINDS.items() if known is point_type)


def _point_type(path: Path, name: str, entry: Any) -> type[Factors] | type[Tucker]:
    kind = entry.get("kind", "matrix") if isinstance(entry, dict) else "matrix"
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{path}: layer {name!r} is a {kind!r}, known are {', '.join(KINDS)}")
    return KINDS[kind]


def _layer(
    path: Path,
    name: str,
    entry: Any,
    point_type: type[Factors] | type[Tucker],
    tensors: Mapping[str, Tensor],
) -> StoredLayer:
    scale = entry.get("scale") if isinstance(entry, dict) else None
    if not isinstance(scale, (int, float)) or not 0.0 < abs(scale) < math.inf:
        raise ValueError(
            f"{path}: layer {name!r} needs a scale that is finite and not 0, got {entry!r}"
        )
    try:
        named = (tensors[join(name, field)] for field in point_type._fields)
        factors = point_type(*named).checked()
    except ValueError as error:
        raise ValueError(f"{path}: layer {name!r}: {error}") from error
    _check_shape(path, name, entry.get("shape"), factors.shape)
    for letter, Q in (("U", factors.U), ("V", factors.V)):
        defect = float(orthonormality_defect(Q.double()))
        if not defect <= MAX_DEFECT:
            raise ValueError(
                f"{path}: the columns of {join(name, letter)!r} are not orthonormal "
                f"(max |Q^T Q - I| = {defect:.1e})"
            )
    kernel = entry.get("kernel_size")
    if kernel is not None and (
        not isinstance(kernel, list) or [type(k) for k in kernel] != [int, int]
    ):
        raise ValueError(f"{path}: layer {name!r} has kernel size {kernel!r}, expected two numbers")
    return StoredLayer(
        factors,
        float(scale),
        bool(entry.get("base", True)),
        None if kernel is None else tuple(kernel),
        from_entry(path, name, entry),
    )


def _check_shape(path: Path, name: str, got: Any, wanted: tuple[int, int]) -> None:
    if not isinstance(got, (list, tuple)) or tuple(got) != wanted:
        raise ValueError(f"{path}: layer {name!r} has shape {got}, expected {wanted} (out, in)")


def _check_target(path: Path, name: str, value: Tensor, target: Tensor | None, what: str) -> None:
    if target is None:
        raise ValueError(f"{path}: the model has no {what} {name!r}")
    if value.shape != target.shape:
        raise ValueError(
            f"{path}: {what} {name!r} has shape {tuple(value.shape)}, the model's has "
            f"{tuple(target.shape)}"
        )
    if value.is_floating_point() != target.is_floating_point():
        raise ValueError(f"{path}: {what} {name!r} is {value.dtype}, the model's is {target.dtype}")
