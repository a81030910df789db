"""The adapter file: what `adapt_` and training have added to a model."""

from pathlib import Path

from torch import nn

from rankwise.distributed.replicas import writes_files
from rankwise.io.adapter_file import adapter_path, read_adapter, write_adapter
from rankwise.io.placing import inside, place_
from rankwise.io.state import trained_tensors
from rankwise.io.stored import stored
from rankwise.nn.low_rank import low_rank_layers


def save(model: nn.Module, folder: str | Path) -> Path:
    """Write `adapter.safetensors`: factors as `<layer>.U/.S/.V`, and what else trains in `model`.

    Dense parameters that train and the running statistics of batch norms are in it under their
    own names; frozen weights are not. The file appears atomically.

    On several processes, after `rankwise.distributed.prepare`, the first one writes. With DDP it is
    enough that the first one calls this. What FSDP2 has sharded has to be gathered first: then call
    it on all processes. The others do not wait for the file; have a `torch.distributed.barrier()`
    between if they read it. Running statistics are the first one's.

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
    path = adapter_path(folder)
    tensors, content = trained_tensors(model)
    stored(path, tensors, content)
    if writes_files(model):
        write_adapter(path, tensors, content)
    return path


def load(
    model: nn.Module, folder: str | Path, *, prefix: str = "", other_base: bool = False
) -> None:
    """Put an adapter into `model`: rankwise's, or PEFT's LoRA or AdaLoRA. Ranks follow the file.

    A plain model is adapted as the file says, and frozen but for the factors and the dense
    parameters in the file. In an adapted model the layers must be the same. Everything is checked
    first: after an error the model is unchanged.

    Of a LoRA, `scale * B A` becomes `U S V^T` with orthonormal factors, the same matrix at its
    exact rank; what PEFT trained whole (`modules_to_save`) trains on. See `docs/peft.md`.

    An adapter is a difference to one base, and on another it is silently wrong, which no shape
    tells. So a file holds some entries of each frozen weight, and another weight is an error, not
    a warning that scrolls by. The same model in another precision is fine; a quantised one cannot
    be compared and is taken as it is, like files from before there were these entries, and PEFT's.

    On several processes, call it on all of them: each reads the file, and keeps its part of what
    is sharded.

    Args:
        model: plain or adapted.
        folder: a folder with `adapter.safetensors` or that file; or a folder with
            `adapter_config.json` and `adapter_model.safetensors`, which PEFT wrote.
        prefix: if `model` wraps the model that the file is of: the name of that part, for example
            "encoder". Names in the file are then those of parts of it.
        other_base: take the adapter to another base on purpose, such as one trained further.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file and entry, if something is missing, unexpected, of the wrong shape,
            not finite or not orthonormal, if the file is of another format or version, if the
            adapter is no low-rank update alone (DoRA, for example), or was trained on another base.
    """
    state = read_adapter(folder)
    place_(model, inside(model, state, prefix.rstrip(".")), other_base=other_base)
