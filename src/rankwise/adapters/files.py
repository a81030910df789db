"""Adapters from files and to files, without a model."""

from pathlib import Path

from rankwise.adapters.adapter import Adapter, check_adapter
from rankwise.io.adapter_file import adapter_path, read_adapter, write_adapter
from rankwise.io.export_lora import LoraExport, write_lora
from rankwise.io.stored import described, stored


def read(folder: str | Path) -> Adapter:
    """The adapter in a file of rankwise's or a folder of PEFT's; see `rankwise.load`.

    A LoRA's factors are in float64.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: naming file, entry and reason, for anything that is no plain adapter.
    """
    return Adapter(read_adapter(folder))


def write(adapter: Adapter, folder: str | Path) -> Path:
    """Write `adapter.safetensors`, which `rankwise.load` and `read` read; atomically.

    Args:
        adapter: factors keep their type; `adapter.to(torch.float32)` halves a sum's.
        folder: made if need be; a path that ends in `.safetensors` is the file itself.

    Returns:
        The path of the file.

    Raises:
        ValueError: for an adapter without layers, and for values that `read` would refuse. An
            earlier file stays as it is.
    """
    check_adapter(adapter, "`rankwise.save(model, folder)` writes that of a model")
    if not adapter.layers:
        raise ValueError("the adapter has no layers: there is nothing to write")
    path = adapter_path(folder)
    tensors, content = described(adapter.stored)
    stored(path, tensors, content)
    write_adapter(path, tensors, content)
    return path


def export_lora(
    adapter: Adapter,
    folder: str | Path,
    *,
    compact: bool = False,
    base_model_name: str | None = None,
    task_type: str | None = None,
) -> LoraExport:
    """Write a folder that PEFT and others read; see `rankwise.export_lora`.

    Args:
        adapter: `adapter.rounded(max_rank=...)` makes it smaller.
        folder: made if need be.
        compact: exact ranks with `rank_pattern` instead of zero padding to the largest rank.
        base_model_name: name or path of the base model, for the configuration.
        task_type: PEFT's, for example "CAUSAL_LM".

    Raises:
        ValueError: if nothing can be exported.
    """
    check_adapter(adapter, "`rankwise.export_lora(model, folder)` writes that of a model")
    return write_lora(
        adapter.stored,
        folder,
        compact=compact,
        base_model_name=base_model_name,
        task_type=task_type,
    )
