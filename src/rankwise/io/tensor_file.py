"""Safetensors files that others may have written: what they hold, or a ValueError with their name.

The library checks a header against the length of the file before anything is made room for. What
it leaves open is here: names without end, and types that torch has not.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

MAX_NAME = 1000
"""Characters of a name; patterns are matched with names, which takes long for long ones."""


class TensorFile(NamedTuple):
    """What a file holds."""

    tensors: dict[str, Tensor]
    metadata: Mapping[str, str]


def read_tensors(path: Path) -> TensorFile:
    """All tensors and the metadata.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is not a whole safetensors file of torch's types.
    """
    with opened(path) as file:
        return TensorFile({k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {})


@contextmanager
def opened(path: Path, asked: str = "") -> Iterator[Any]:
    """The open file, for `keys`, `metadata`, `get_tensor` and `get_slice`; errors as above.

    `asked` is put before the path in messages, such as the option that named it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{asked}there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            long = next((key for key in file.keys() if len(key) > MAX_NAME), None)
            if long is not None:
                raise ValueError(
                    f"{asked}{path}: entry {long[:40]!r}... has a name of {len(long)} characters, "
                    f"the longest may have {MAX_NAME}"
                )
            yield file
    except SafetensorError as error:
        raise ValueError(f"{asked}{path} is not a whole safetensors file: {error}") from error
