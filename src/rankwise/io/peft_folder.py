"""A folder of PEFT's, read as factors: `scale * B A = U S V^T`, exact up to rounding in float64.

Every tensor of the file is taken, or refused by name; of pickles nothing is read.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankwise.io.peft_config import CONFIG, LoraScales, read_config
from rankwise.io.stored import Stored, StoredLayer, check_finite
from rankwise.io.tensor_file import read_tensors
from rankwise.numerics.factors import Factors
from rankwise.numerics.orth import orthonormalise
from rankwise.numerics.rounding import from_product
from rankwise.surgery.init import stream

WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
PREFIX = "base_model.model."
SIDE = re.compile(r"(.+)\.lora_(embedding_[AB]|[AB]\.weight)")
ADA_SIDE = re.compile(r"(.+)\.lora_([ABE])")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Sides(NamedTuple):
    """Both tensors of a layer as the file has them."""

    A: Tensor
    B: Tensor
    embedding: bool


def read_peft(folder: Path) -> Stored:
    """The adapter in `folder`, its factors in float64 with scale 1.

    Raises:
        FileNotFoundError: without a file of tensors.
        ValueError: naming file, entry and reason, for anything that is no LoRA or AdaLoRA.
    """
    config = read_config(folder)
    path = folder / WEIGHTS
    tensors = _tensors(folder)
    sides, others = _sorted(path, tensors, config)
    if not sides:
        raise ValueError(f"{path} holds no lora_A and lora_B")
    layers = {name: _layer(path, name, pair, config) for name, pair in sides.items()}
    dense, statistics, frozen = {}, {}, {}
    for name, value in others.items():
        module, _, entry = name.rpartition(".")
        if name.endswith((".base_layer.weight", ".base_layer.bias")):
            frozen[name.replace(".base_layer.", ".")] = value
        elif not _is_saved(module, config.saved_modules):
            frozen[name] = value
        elif entry in STATISTICS:
            statistics[name] = value
        else:
            dense[name] = value
    return Stored(path, layers, dense, statistics, frozen, foreign=True)


def _tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / PICKLE).is_file():
            raise ValueError(
                f"{folder / PICKLE} is a pickle, which may run any code when it is loaded: "
                "rankwise reads safetensors only. If you trust it, write it anew with PEFT: "
                f"`PeftModel.from_pretrained(base, {str(folder)!r}).save_pretrained(new_folder)`"
            )
        raise FileNotFoundError(f"there is no file {path}, beside {CONFIG}")
    return read_tensors(path).tensors


def _sorted(
    path: Path, tensors: Mapping[str, Tensor], config: LoraScales
) -> tuple[dict[str, Sides], dict[str, Tensor]]:
    """The two tensors of each layer, and all others, by names without PEFT's prefix."""
    found: dict[str, dict[str, Tensor]] = {}
    embeddings: set[str] = set()
    others: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if not key.startswith(PREFIX):
            raise ValueError(f"{path}: entry {key!r} does not begin with {PREFIX!r}, as PEFT's do")
        name = key.removeprefix(PREFIX)
        if not value.is_floating_point() and not name.endswith(STATISTICS):
            raise ValueError(f"{path}: entry {key!r} is {value.dtype}, expected floating point")
        check_finite(path, key, value)
        match = (ADA_SIDE if config.ada else SIDE).fullmatch(name)
        if match:
            side = match[2].removeprefix("embedding_").removesuffix(".weight")
            if side in found.setdefault(match[1], {}):
                raise ValueError(f"{path}: layer {match[1]!r} has a lora_{side} of two kinds")
            found[match[1]][side] = value
            embeddings |= {match[1]} if match[2].startswith("embedding_") else set()
        elif "lora_" in name:
            raise ValueError(
                f"{path}: entry {key!r} is no part of a plain LoRA (lora_A.weight, lora_B.weight, "
                "lora_embedding_A, lora_embedding_B)"
            )
        else:
            others[name] = value
    wanted = {"A", "B", "E"} if config.ada else {"A", "B"}
    for name, pair in found.items():
        if set(pair) != wanted:
            missing = ", ".join(f"lora_{side}" for side in sorted(wanted - set(pair)))
            raise ValueError(f"{path}: layer {name!r} lacks {missing}")
    sides = {
        name: Sides(_scaled_rows(path, name, pair), pair["B"], name in embeddings)
        for name, pair in found.items()
        # AdaLoRA may have cut a layer to nothing.
        if not config.ada or pair["E"].numel()
    }
    return sides, others


def _scaled_rows(path: Path, name: str, pair: Mapping[str, Tensor]) -> Tensor:
    """`A`, or `diag(E) A` of AdaLoRA."""
    A = pair["A"]
    if "E" not in pair:
        return A
    if pair["E"].shape != (len(A), 1):
        raise ValueError(f"{path}: layer {name!r} has lora_E {tuple(pair['E'].shape)}")
    return A.double() * pair["E"].double()


def _is_saved(module: str, saved: tuple[str, ...]) -> bool:
    """Whether `module`, or one that it is in, ends with one of these names: PEFT's rule."""
    parts = module.split(".")
    inside = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(name.endswith(end) for name in inside for end in saved)


def _layer(path: Path, name: str, sides: Sides, config: LoraScales) -> StoredLayer:
    A, B = sides.A, sides.B
    _check_sides(path, name, sides, config)
    size = A.shape[2:]
    kernel = (1,) * (2 - len(size)) + tuple(size) if len(size) else None
    scale = config.scale(name)
    B, A = scale * B.double().flatten(1), A.double().flatten(1)
    _check_size(path, name, B, scale)
    if sides.embedding:
        # The table is the transpose of PEFT's product.
        B, A = A.mT, B.mT
    f = from_product(B, A)
    _check_size(path, name, f.S, scale)
    f = f if bool(f.S.any()) else _at_zero(B, A, stream(0, name))
    kind = "embedding" if sides.embedding else ("linear", "conv1d", "conv2d")[len(size)]
    return StoredLayer(f, 1.0, True, kernel, kind, config.transposed and kind == "linear")


def _check_size(path: Path, name: str, X: Tensor, scale: float) -> None:
    if not float(X.abs().amax()) <= torch.finfo(torch.float32).max:
        raise ValueError(f"{path}: layer {name!r} times its scale, {scale:g}, exceeds float32")


def _check_sides(path: Path, name: str, sides: Sides, config: LoraScales) -> None:
    A, B = sides.A, sides.B
    told = f"{path}: layer {name!r} has lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)}"
    if A.ndim != B.ndim or not 2 <= A.ndim <= (2 if sides.embedding else 4):
        raise ValueError(f"{told}; rankwise reads linear maps, embeddings, and 1d or 2d kernels")
    if any(width != 1 for width in B.shape[2:]):
        raise ValueError(f"{told}; the kernel of lora_B must have size 1")
    if A.shape[0] != B.shape[1] or 0 in A.shape or 0 in B.shape:
        raise ValueError(f"{told}, which do not fit together")
    if A.shape[0] != config.rank(name) and not config.ada:
        raise ValueError(
            f"{told}, of rank {A.shape[0]}; {config.path} says {config.rank(name)} (r or "
            "rank_pattern), so that its scale is not known"
        )


def _at_zero(B: Tensor, A: Tensor, draw: torch.Generator) -> Factors:
    """Factors of `B A = 0` with the directions that one of both holds, for training to go on.

    As many as the file has, without the zeros that pad it.
    """
    held = (B.any(0) | A.any(1)).nonzero().flatten()
    held = held if len(held) else torch.zeros(1, dtype=torch.long)
    rank = min(len(held), len(B), A.shape[1])
    U, V = (_basis(X[:, held], draw)[:, :rank].contiguous() for X in (B, A.mT))
    return Factors(U, U.new_zeros(rank, rank), V)


def _basis(X: Tensor, draw: torch.Generator) -> Tensor:
    """Orthonormal columns that span `X`, random ones where it has none."""
    random: Any = torch.randn(X.shape, generator=draw, dtype=X.dtype)
    return orthonormalise(torch.where(X.any(0), X, random))
