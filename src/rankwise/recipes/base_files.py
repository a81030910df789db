"""The weights of a base model, found in its files without building the model."""

from pathlib import Path
from typing import NamedTuple

from rankwise.check.weights import Weight
from rankwise.io.tensor_file import opened
from rankwise.numerics.fingerprint import Fingerprint, fingerprint


class BaseWeight(NamedTuple):
    """A matrix of the base: a sample of its entries, and its norm."""

    mark: Fingerprint | None
    norm: float


def base_weights(base: str, weights: dict[str, Weight]) -> dict[str, BaseWeight]:
    """Those matrices of the base that have the name and the shape of a layer in `weights`.

    The names may begin otherwise, as those of a part of the model do. Layers that are not found
    are left out.

    Args:
        base: folder with `.safetensors` files, such a file, or the name of a model on the hub that
            is in its cache on this machine; nothing is downloaded.

    Raises:
        ValueError, FileNotFoundError: naming what is missing.
    """
    keys: dict[str, Path] = {}
    for file in _files(base):
        with opened(file, "--base: ") as tensors:
            keys.update(dict.fromkeys(tensors.keys(), file))
    found: dict[str, BaseWeight] = {}
    for name, weight in weights.items():
        key = matching(name, keys)
        if key is None:
            continue
        with opened(keys[key], "--base: ") as tensors:
            W = tensors.get_tensor(key)
        # A Conv1D of GPT-2's kind stores its weight as (in, out).
        if tuple(W.shape) in (weight.point.shape, weight.point.shape[::-1]):
            found[name] = BaseWeight(fingerprint(W), float(W.float().norm()))
    return found


def matching(name: str, keys: dict[str, Path]) -> str | None:
    """The key of the weight of layer `name`: the same, or the same but for how it begins."""
    parts = name.split(".")
    for i in range(len(parts)):
        tail = ".".join([*parts[i:], "weight"])
        if tail in keys:
            return tail
        ends = [key for key in keys if key.endswith(f".{tail}")]
        # A short end, as `dense.weight`, says too little.
        if len(ends) == 1 and (i == 0 or len(parts) - i > 1):
            return ends[0]
    return None


def _files(base: str) -> list[Path]:
    path = Path(base)
    if path.is_file():
        return [path]
    folder = path if path.is_dir() else _from_hub(base)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"--base: {folder} has no .safetensors file")
    return files


def _from_hub(name: str) -> Path:
    problem = f"--base {name} is no folder, and no model in the hub's cache on this machine"
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise FileNotFoundError(f"{problem} (huggingface_hub is not installed)") from error
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{problem}: give its folder, or download it first, `hf download {name}`"
        ) from error
