"""Files of tensors that tell their own checksum, so that a flipped bit is found when they are read.

The checksum is one entry of the metadata. It is of the content, not of the bytes of the file: a
program that reads all of it and writes it anew keeps it valid.
"""

import ctypes
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, TensorSpec, safe_open, serialize_file
from torch import Tensor

from rankwise.distributed.sharded import is_sharded
from rankwise.io.atomic import replacing

CHECKSUM = "checksum"
MAX_NAME = 1000
"""Characters of a name; patterns are matched with names, which takes long for long ones."""
FORM = re.compile("sha256:[0-9a-f]{64}")
SYSTEM = re.compile(r"\(os error (\d+)\)")


class Damaged(ValueError):
    """What was written there can no longer be read."""


class TensorFile(NamedTuple):
    """What a file holds; without the checksum, which was right, or was not there."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """One safetensors file with its checksum, atomically; tensors are copied to the CPU.

    Raises ValueError for a tensor that is sharded over processes, and OSError, naming `path`.
    """
    with replacing(path) as temporary:
        fill(temporary, path, tensors, metadata)


def fill(
    file: Path, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """`write_tensors` into `file`, which is to become `path`."""
    sharded = next((name for name, t in tensors.items() if is_sharded(t)), None)
    if sharded is not None:
        raise ValueError(
            f"{path}: {sharded!r} is sharded over processes, and this one has a part of it. Save "
            "by `rankwise.save` or `rankwise.save_training`, which gather, and load that in a "
            "single process"
        )
    if CHECKSUM in metadata:
        raise ValueError(f"{path}: {CHECKSUM!r} in the metadata is for the checksum of the file")
    own = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    told = {"format": "pt", **metadata}
    # Not by `safetensors.torch`, which needs NumPy, for it is not among our dependencies.
    entries = {name: _entry(t) for name, t in own.items()}
    try:
        serialize_file(entries, file, metadata={**told, CHECKSUM: checksum(own, told)})
    except SafetensorError as error:
        number = SYSTEM.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error


def read_tensors(path: Path) -> TensorFile:
    """All of a safetensors file, once its checksum is found right.

    A file without one is taken as it is: it is of an earlier rankwise, or of another program.

    Raises:
        FileNotFoundError: if there is none.
        Damaged: a ValueError that names it, for a file that is cut off or no safetensors, or whose
            content is not what was written.
        OSError: naming it, if the system cannot read it.
    """
    with opened(path) as file:
        metadata = dict(file.metadata() or {})
        # Copies, for the library's tensors are the file: they would change and vanish with it, and
        # lie where it has them, where products may differ in their last bits.
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}
    told = metadata.pop(CHECKSUM, None)
    if told is None:
        # Whoever damages the key leaves the value.
        if any(FORM.fullmatch(value) for value in metadata.values()):
            raise Damaged(f"{path} is damaged: {CHECKSUM!r} in its metadata has another name")
    elif told != checksum(tensors, metadata):
        raise Damaged(f"{path} is damaged: its content is not what was written, by its checksum")
    return TensorFile(tensors, metadata)


@contextmanager
def opened(path: Path, asked: str = "") -> Iterator[Any]:
    """The open file, for `keys`, `metadata`, `get_tensor`; unverified, with errors as above.

    The library checks a header against the length of the file before anything is made room for;
    names without end are refused here. `asked` is put before the path in messages.
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
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(f"{asked}{path} could not be read: {error}") from error
    except SafetensorError as error:
        raise Damaged(
            f"{asked}{path} is damaged: it is not a whole safetensors file: {error}"
        ) from error


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of the content: metadata, then types, shapes and bytes, each sorted by name.

    `tensors` are contiguous and on the CPU. They are not copied.
    """
    digest = hashlib.sha256(_line(sorted(metadata.items())))
    for name, t in sorted(tensors.items()):
        digest.update(_line([name, _kind(t), list(t.shape)]))
        if t.nbytes:
            digest.update((ctypes.c_char * t.nbytes).from_address(t.data_ptr()))
    return f"sha256:{digest.hexdigest()}"


def _line(value: object) -> bytes:
    return json.dumps(value).encode()


def _kind(t: Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")


def _entry(t: Tensor) -> TensorSpec:
    """A dense tensor as safetensors takes it: by its address, so it has to live until then."""
    return TensorSpec(dtype=_kind(t), shape=t.shape, data_ptr=t.data_ptr(), data_len=t.nbytes)
