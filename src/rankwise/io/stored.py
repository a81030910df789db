"""What a rankwise file says of a model: its layers and tensors, checked in themselves."""

import math
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from rankwise.io.fingerprint import from_entry, to_text
from rankwise.io.json_object import short
from rankwise.numerics.factors import Factors, orthonormality_defect
from rankwise.numerics.fingerprint import Fingerprint
from rankwise.numerics.tucker import Tucker

MAX_DEFECT = 1e-3

MAPS = ("linear", "embedding", "conv1d", "conv2d")

KINDS: Mapping[str, type[Factors] | type[Tucker]] = {"matrix": Factors, "tucker": Tucker}
"""Kinds of weights; the entries of a layer are named as the fields of its point. A file without a
kind is from before there were two."""


class StoredLayer(NamedTuple):
    """One low-rank layer of a file."""

    factors: Factors | Tucker
    scale: float
    has_base: bool
    kernel_size: tuple[int, ...] | None
    map: str = "linear"
    """What it is a weight of: one of `MAPS`, or "" where the file does not tell."""
    transposed: bool = False
    """Whether the base stores its weight as (in, out), Hugging Face's `Conv1D`."""
    fingerprint: Fingerprint | None = None
    """Of the frozen weight that the adapter was trained on, if it has one that can be compared."""

    def with_factors(self, factors: Factors | Tucker, scale: float) -> "StoredLayer":
        return self._replace(factors=factors, scale=scale)


class Stored(NamedTuple):
    """What a file says of a model, checked in itself."""

    path: Path | str
    """Where it is from, for messages."""
    layers: dict[str, StoredLayer]
    dense: dict[str, Tensor]
    statistics: dict[str, Tensor]
    frozen: dict[str, Tensor]
    """Weights of the base model that the file repeats."""
    foreign: bool = False
    """Written by another program, which has no say in the scale of a layer and does not tell the
    running statistics."""

    @property
    def fingerprints(self) -> dict[str, Fingerprint | None]:
        return {name: layer.fingerprint for name, layer in self.layers.items() if layer.has_base}


def describe(entry: StoredLayer) -> dict[str, Any]:
    """What the metadata say of a layer, beside its factors."""
    f = entry.factors
    return {
        "kind": kind_of(type(f)),
        "scale": entry.scale,
        "shape": list(f.shape),
        "base": entry.has_base,
        "map": entry.map,
        **({"transposed": True} if entry.transposed else {}),
        **({} if entry.kernel_size is None else {"kernel_size": list(entry.kernel_size)}),
        **({} if entry.fingerprint is None else {"fingerprint": to_text(entry.fingerprint)}),
    }


def described(state: Stored) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by name, and the description that `stored` needs to read them back.

    Weights of the base model are left out.
    """
    tensors = {
        join(name, field): t
        for name, entry in state.layers.items()
        for field, t in entry.factors._asdict().items()
    }
    content = {
        "layers": {name: describe(entry) for name, entry in state.layers.items()},
        "dense": list(state.dense),
        "statistics": list(state.statistics),
        **({"foreign": True} if state.foreign else {}),
    }
    return {**tensors, **state.dense, **state.statistics}, content


def stored(path: Path | str, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> Stored:
    """The inverse of `trained_tensors`; ValueError, with file and entry, for anything amiss."""
    described = content.get("layers")
    dense, statistics = (_names(path, content, key) for key in ("dense", "statistics"))
    if not isinstance(described, dict):
        raise ValueError(
            f"{path}: 'layers' of the metadata must name layers, got {short(described)}"
        )
    types = {name: _point_type(path, name, entry) for name, entry in described.items()}
    expected = [join(n, entry) for n, point in types.items() for entry in point._fields]
    expected += dense + statistics
    twice = [name for name, count in Counter(expected).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: entry {min(twice)!r} is described twice")
    check_names(path, set(expected), set(tensors), "tensor")
    for name, value in tensors.items():
        check_finite(path, name, value)
    layers = {
        name: _layer(path, name, entry, types[name], tensors) for name, entry in described.items()
    }
    return Stored(
        path,
        layers,
        {name: tensors[name] for name in dense},
        {name: tensors[name] for name in statistics},
        {},
        foreign=content.get("foreign") is True,
    )


def join(name: str, entry: str) -> str:
    """Name of an entry of the module `name`; the model itself has the name ""."""
    return f"{name}.{entry}" if name else entry


def check_names(path: Path | str, expected: set[str], got: set[str], what: str) -> None:
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


def _names(path: Path | str, content: Mapping[str, Any], key: str) -> list[str]:
    names = content.get(key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{path}: {key!r} of the metadata must be a list of names, got {short(names)}"
        )
    return names


def kind_of(point_type: type) -> str:
    return next(kind for kind, known in KINDS.items() if known is point_type)


def _point_type(path: Path | str, name: str, entry: Any) -> type[Factors] | type[Tucker]:
    kind = entry.get("kind", "matrix") if isinstance(entry, dict) else "matrix"
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{path}: layer {name!r} is a {short(kind)}, known are {', '.join(KINDS)}")
    return KINDS[kind]


def _layer(
    path: Path | str,
    name: str,
    entry: Any,
    point_type: type[Factors] | type[Tucker],
    tensors: Mapping[str, Tensor],
) -> StoredLayer:
    scale: Any = entry.get("scale") if isinstance(entry, dict) else None
    if type(scale) not in (int, float) or not 0.0 < abs(scale) <= sys.float_info.max:
        raise ValueError(
            f"{path}: layer {name!r} needs a scale that is finite and not 0, got {short(entry)}"
        )
    try:
        named = (tensors[join(name, field)] for field in point_type._fields)
        factors = point_type(*named).checked()
    except ValueError as error:
        raise ValueError(f"{path}: layer {name!r}: {error}") from error
    if min(mode.rank for mode in factors.modes()) == 0:
        raise ValueError(f"{path}: layer {name!r} has rank 0, expected at least 1")
    check_shape(path, name, entry.get("shape"), factors.shape)
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
        raise ValueError(
            f"{path}: layer {name!r} has kernel size {short(kernel)}, expected two numbers"
        )
    return StoredLayer(
        factors,
        float(scale),
        bool(entry.get("base", True)),
        None if kernel is None else tuple(kernel),
        _map(path, name, entry, factors, kernel),
        bool(entry.get("transposed", False)),
        from_entry(path, name, entry),
    )


def _map(
    path: Path | str, name: str, entry: Mapping[str, Any], f: Factors | Tucker, kernel: Any
) -> str:
    """What the layer is a weight of; files of an earlier rankwise do not tell.

    Its adapters were of linear maps.
    """
    found = entry.get("map", "linear" if entry.get("base", True) else "")
    if found == "":
        return ""
    if found not in MAPS:
        raise ValueError(
            f"{path}: layer {name!r} has map {short(found)}, known are {', '.join(MAPS)}"
        )
    if found.startswith("conv") != (kernel is not None):
        raise ValueError(f"{path}: layer {name!r} is {a(found)} with kernel size {short(kernel)}")
    if kernel is not None and isinstance(f, Factors):
        if min(kernel) < 1 or f.shape[1] % math.prod(kernel):
            raise ValueError(
                f"{path}: layer {name!r}: shape {f.shape} has no kernels of {short(kernel)}"
            )
    return str(found)


def a(map_: str) -> str:
    """The map with its article, for messages."""
    named = {"linear": "a linear map", "embedding": "an embedding", "conv1d": "a 1d convolution"}
    return named.get(map_, "a 2d convolution")


def check_finite(path: Path | str, name: str, value: Tensor) -> None:
    """ValueError for an entry of floating point that is not finite, or too short to be a value."""
    if value.is_floating_point() and value.element_size() < 2:
        raise ValueError(f"{path}: entry {name!r} is {value.dtype}, expected 16 bits or more")
    if value.is_floating_point() and not bool(value.isfinite().all()):
        raise ValueError(f"{path}: entry {name!r} has NaN or infinite values")


def check_shape(path: Path | str, name: str, got: Any, wanted: tuple[int, int]) -> None:
    if not isinstance(got, (list, tuple)) or tuple(got) != wanted:
        raise ValueError(
            f"{path}: layer {name!r} has shape {short(got)}, expected {wanted} (out, in)"
        )
