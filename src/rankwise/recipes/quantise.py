"""Frozen linear layers in eight bits, by torchao, or in four, by bitsandbytes.

Both keep a weight in few bits and multiply by what these say; inputs are not rounded, neither in
training nor in evaluation. bitsandbytes' own eight bits round inputs too, in evaluation only.
"""

import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import nn


def quantise_(model: nn.Module, names: Sequence[str], bits: str, device: str) -> str:
    """Quantise these layers, which must be `nn.Linear`; returns what does it, in words.

    Args:
        model: on the CPU; what is not named keeps its weights.
        names: of the layers.
        bits: a key of `WAYS`.
        device: where the layers will run.

    Raises:
        ImportError: without the library.
        ValueError: for a layer of another type.
    """
    for name in names:
        layer = model.get_submodule(name)
        if type(layer) is not nn.Linear:
            raise ValueError(
                f"--quantize {bits} knows torch.nn.Linear, and layer {name!r} is a "
                f"{type(layer).__name__}"
            )
    library, how, words = WAYS[bits]
    try:
        how(model, names, device)
    except ImportError as error:
        raise ImportError(f"--quantize {bits} needs {library}: pip install {library}") from error
    return f"{library} {version(library)}, {words}"


def _eight(model: nn.Module, names: Sequence[str], device: str) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    chosen = set(names)
    quantize_(model, Int8WeightOnlyConfig(), filter_fn=lambda _, name: name in chosen)
    model.requires_grad_(False).to(device)


def _four(model: nn.Module, names: Sequence[str], device: str) -> None:
    import bitsandbytes

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
        parent, _, child = name.rpartition(".")
        # The weight is packed on its way to the device, the CPU too.
        setattr(model.get_submodule(parent), child, new.requires_grad_(False).to(device))


WAYS: dict[str, tuple[str, Callable[[nn.Module, Sequence[str], str], None], str]] = {
    "8bit": ("torchao", _eight, "int8, one scale a row"),
    "4bit": ("bitsandbytes", _four, "NF4, one scale for 64 numbers, scales in 8 bits"),
}
