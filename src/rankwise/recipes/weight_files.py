"""Reading what a file says of low-rank weights, sound or not, for an examination.

`rankwise.load` refuses a file at its first flaw. Here flaws are wanted: what cannot be read at all
is a ValueError, everything else is for the checks.
"""

import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankwise.check.weights import Weight
from rankwise.io import adapter_file, training
from rankwise.io.document import METADATA_KEY, read_document
from rankwise.io.fingerprint import from_entry
from rankwise.io.json_object import parsed, read_object, short
from rankwise.io.peft_config import CONFIG
from rankwise.io.peft_folder import PREFIX, SIDE, WEIGHTS
from rankwise.io.stored import KINDS, join, stored
from rankwise.io.tensor_file import read_tensors
from rankwise.io.training_file import MODEL_PREFIX, tensors_of
from rankwise.numerics.factors import Factors
from rankwise.numerics.fingerprint import Fingerprint
from rankwise.numerics.tucker import Tucker

FORMATS = {adapter_file.FORMAT: adapter_file.VERSION, training.FORMAT: training.VERSION}


class WeightFile(NamedTuple):
    """What a file holds."""

    path: Path
    weights: dict[str, Weight]
    marks: dict[str, Fingerprint | None]
    """Of the frozen weights that the adapters are for; None where the file does not tell."""
    dense: tuple[str, ...] = ()
    """Parameters that were trained densely."""
    flaw: str = ""
    """Why `rankwise.load` would refuse it, or ""."""


def format_of(path: Path) -> str | None:
    """The format that the metadata names; None for a safetensors file that is not rankwise's.

    Raises ValueError for a file that is damaged or not safetensors.
    """
    try:
        text = read_tensors(path).metadata.get(METADATA_KEY)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if text is None:
        return None
    return str(parsed(text, f"{path}: {METADATA_KEY!r} in the metadata").get("format"))


def read_weights(path: Path) -> WeightFile:
    """An adapter file, or the state of a training; ValueError for any other file."""
    named = format_of(path)
    if named not in FORMATS:
        raise ValueError(f"{path} holds no low-rank weights of rankwise")
    document = read_document(path, format=named, version=FORMATS[named])
    if named == adapter_file.FORMAT:
        return _weights(path, document.tensors, document.content)
    content = document.content.get("model")
    if not isinstance(content, dict):
        raise ValueError(f"{path}: the metadata does not describe a model")
    return _weights(path, tensors_of(document, MODEL_PREFIX), content)


def _weights(path: Path, tensors: dict[str, Tensor], content: dict[str, Any]) -> WeightFile:
    weights: dict[str, Weight] = {}
    marks: dict[str, Fingerprint | None] = {}
    try:
        for name, entry in content["layers"].items():
            kind = KINDS[entry.get("kind", "matrix")]
            point = _matrices(kind(*(tensors[join(name, field)] for field in kind._fields)))
            based = bool(entry.get("base", True))
            mark = from_entry(path, name, entry)
            norm = None if mark is None else mark.rms * math.sqrt(_numel(point))
            weights[name] = Weight(point, _finite(entry["scale"]), based, norm)
            if based:
                marks[name] = mark
        dense = tuple(map(str, content["dense"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: an entry is missing or broken: {error}") from error
    return WeightFile(path, weights, marks, dense, _flaw(path, tensors, content))


def _matrices(point: Factors | Tucker) -> Factors | Tucker:
    """`point`, if it has the shapes of one, whatever its entries are."""
    type(point)(*(torch.zeros_like(t, dtype=torch.float32) for t in point)).checked()
    if not all(t.is_floating_point() and t.numel() for t in point):
        raise ValueError("factors must be floating-point numbers, at least one each")
    return point


def _finite(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"a scale must be a finite number, got {short(value)}")
    return float(value)


def _numel(point: Factors | Tucker) -> int:
    return math.prod((*point.shape, *point.places))


def _flaw(path: Path, tensors: dict[str, Tensor], content: dict[str, Any]) -> str:
    try:
        stored(path, tensors, content)
    except ValueError as error:
        return str(error)
    return ""


def read_lora(folder: Path) -> WeightFile:
    """A folder of PEFT's with LoRA, each `scale * B A` as factors.

    Raises ValueError if it cannot be read, is of another method, or lacks one of a pair.
    """
    config, path = read_json(folder / CONFIG), folder / WEIGHTS
    if config.get("peft_type") != "LORA":
        raise ValueError(
            f"{folder / CONFIG} is of the method {config.get('peft_type')!r}, not LORA"
        )
    if not path.is_file():
        raise ValueError(f"{folder} has no {WEIGHTS}")
    tensors = read_tensors(path).tensors
    weights: dict[str, Weight] = {}
    for key, A in tensors.items():
        match = SIDE.fullmatch(key.removeprefix(PREFIX))
        if match and match[2] in ("A.weight", "embedding_A"):
            other = match[2].replace("A", "B")
            B = tensors.get(f"{key.removesuffix(match[2])}{other}")
            if B is None or not _fit(A, B):
                raise ValueError(f"{path}: {key} has no lora_B that fits")
            scale = _lora_scale(folder / CONFIG, config, A.shape[0])
            A, B = A.flatten(1), B.flatten(1)
            # The table of an embedding is the transpose of PEFT's product.
            f = _factors(B.mT, A.mT) if match[2] == "embedding_A" else _factors(A, B)
            weights[match[1]] = Weight(f, scale, True)
    if not weights:
        raise ValueError(f"{path} has no pair of lora_A and lora_B")
    return WeightFile(path, weights, dict.fromkeys(weights))


def _factors(A: Tensor, B: Tensor) -> Factors:
    """`B A` with orthonormal bases; as it is where it is not finite."""
    A, B = A.double(), B.double()
    if not bool(A.isfinite().all() and B.isfinite().all()):
        return Factors(B, torch.eye(A.shape[0], dtype=A.dtype), A.mT)
    (U, R), (V, T) = torch.linalg.qr(B), torch.linalg.qr(A.mT)
    return Factors(U, R @ T.mT, V)


def _fit(A: Tensor, B: Tensor) -> bool:
    """Whether the product `B A` is a matrix, with numbers in it."""
    if A.ndim < 2 or B.ndim != A.ndim or not all(t.is_floating_point() for t in (A, B)):
        return False
    return B.shape[1] == A.shape[0] and bool(A.numel() and B.numel()) and set(B.shape[2:]) <= {1}


def _lora_scale(path: Path, config: dict[str, Any], rank: int) -> float:
    """`alpha / r`; patterns for single layers do not matter for an order of magnitude."""
    r = config.get("r", rank)
    try:
        alpha = _finite(config.get("lora_alpha", rank))
    except ValueError as error:
        raise ValueError(f"{path}: 'lora_alpha': {error}") from error
    if type(r) is not int or not 1 <= r <= 2**31:
        raise ValueError(f"{path}: the rank 'r' must be an int of at least 1, got {short(r)}")
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; ValueError, naming it, where it does not."""
    try:
        return read_object(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
