"""Frozen linear layers in eight or four bits, by bitsandbytes."""

import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

INSTALL = "pip install bitsandbytes"


def quantise_(model: nn.Module, names: Sequence[str], bits: str, device: str) -> str:
    """Replace these layers, which must be `nn.Linear`; returns what does it now, in words.

    Args:
        model: on the CPU; what is not named keeps its weights.
        names: of the layers.
        bits: a key of `LAYERS`.
        device: where the layers will run. bitsandbytes packs a weight when it gets there.

    Raises:
        ImportError: without bitsandbytes.
        ValueError: for a layer of another type.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise ImportError(f"--quantize {bits} needs bitsandbytes: {INSTALL}") from error
    # It reports on each start that an optional package with faster kernels is not there.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    make, words = LAYERS[bits]
    for name in names:
        layer = model.get_submodule(name)
        if type(layer) is not nn.Linear:
            raise ValueError(
                f"--quantize {bits} knows torch.nn.Linear, and layer {name!r} is a "
                f"{type(layer).__name__}"
            )
        new = make(bitsandbytes.nn, layer)
        new.load_state_dict(layer.state_dict())
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new.requires_grad_(False).to(device))
    return f"bitsandbytes {version('bitsandbytes')}, {words}"


def _eight(library: Any, layer: nn.Linear) -> Any:
    # A threshold would send columns with large inputs through another product.
    options = {"has_fp16_weights": False, "threshold": 0.0}
    return library.Linear8bitLt(*_shape(layer), **options)


def _four(library: Any, layer: nn.Linear) -> Any:
    options = {"quant_type": "nf4", "compute_dtype": torch.float32, "compress_statistics": True}
    return library.Linear4bit(*_shape(layer), **options)


def _shape(layer: nn.Linear) -> tuple[int, int, bool]:
    return layer.in_features, layer.out_features, layer.bias is not None


LAYERS: dict[str, tuple[Callable[[Any, nn.Linear], Any], str]] = {
    "8bit": (_eight, "int8, one scale a row"),
    "4bit": (_four, "NF4, blocks of 64, scales in 8 bits"),
}
