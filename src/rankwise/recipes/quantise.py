"""Frozen linear layers in eight bits, or in four by bitsandbytes.

Both multiply by what the bits say; inputs are not rounded. The eight bits of other libraries do not
serve here: bitsandbytes rounds inputs too, in evaluation only; torchao keeps every weight in
floating point from the forward pass to the backward pass.
"""

import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from rankwise.nn.base import is_plain
from rankwise.recipes.int8 import Int8Linear


def quantise_(model: nn.Module, names: Sequence[str], bits: str, device: str) -> str:
    """Quantise these layers, which must be `nn.Linear`; returns into what, in words.

    Args:
        model: on the CPU; what is not named keeps its weights.
        names: of the layers.
        bits: a key of `WAYS`.
        device: where the layers will run.

    Raises:
        ImportError: without bitsandbytes, for four bits.
        ValueError: for a layer of another type.
    """
    for name in names:
        layer = model.get_submodule(name)
        if type(layer) is not nn.Linear:
            raise ValueError(
                f"--quantize {bits} knows torch.nn.Linear, and layer {name!r} is a "
                f"{type(layer).__name__}"
            )
    words = WAYS[bits](model, names, device)
    # What keeps its weights may lie in one mapped file with all that was quantised: as long as it
    # does, the whole file stays in memory.
    for parameter in model.parameters():
        if is_plain(parameter):
            parameter.data = parameter.data.clone()
    return words


def _eight(model: nn.Module, names: Sequence[str], device: str) -> str:
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        _put(model, name, Int8Linear(layer), device)
    return "int8, one scale a row"


def _four(model: nn.Module, names: Sequence[str], device: str) -> str:
    try:
        import bitsandbytes
    except ImportError as error:
        raise ImportError(
            '--quantize 4bit needs bitsandbytes: pip install "rankwise[quantize]"'
        ) from error
    library: Any = bitsandbytes.nn
    # It reports on each start that an optional package with faster kernels is not there.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        new = library.Linear4bit(
            layer.in_features,
            layer.out_features,
            layer.bias is not None,
            quant_type="nf4",
            compute_dtype=torch.float32,
        )
        # Else, on some CPUs, the first forward pass in evaluation packs the weight anew, with
        # scales in bfloat16: it would change, and once more on the way back to training.
        new.support_avx512bf16_for_cpu = False
        new.load_state_dict(layer.state_dict())
        # The weight is packed on its way to the device, the CPU too.
        _put(model, name, new, device)
    words = "NF4, one scale for 64 numbers, scales in 8 bits"
    return f"{words} (bitsandbytes {version('bitsandbytes')})"


def _put(model: nn.Module, name: str, layer: nn.Module, device: str) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer.requires_grad_(False).to(device))


WAYS: dict[str, Callable[[nn.Module, Sequence[str], str], str]] = {"8bit": _eight, "4bit": _four}
