"""Reading idx files, the format of MNIST and Fashion-MNIST: plain or gzipped."""

import gzip
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

PARTS = ("train", "t10k")
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
UNSIGNED_BYTES = 0x08
MOST_AXES = 3
MAX_VALUES = 2**30
"""Bytes of an array, twenty times MNIST: a few kilobytes of gzip can hold as many."""


class Labelled(NamedTuple):
    """Grey values (rows, height, width) and labels (rows,), bytes both."""

    images: Tensor
    labels: Tensor


def read_idx(file: IO[bytes], name: str) -> Tensor:
    """The array of bytes in `file`; ValueError with the file's `name` if it is none.

    Two zero bytes, the type, the number of axes, each axis as four bytes with the highest first.
    No more is read, and unpacked, than this header promises.
    """
    head = file.read(4)
    axes = head[3] if len(head) == 4 else 0
    sizes = file.read(4 * axes) if axes <= MOST_AXES else b""
    if head[:3] != bytes([0, 0, UNSIGNED_BYTES]) or len(sizes) != 4 * axes or not axes:
        raise ValueError(f"{name}: not an idx file of unsigned bytes with 1 to {MOST_AXES} axes")
    shape = [int.from_bytes(sizes[4 * i : 4 * i + 4], "big") for i in range(axes)]
    promised = "x".join(map(str, shape))
    count = math.prod(shape)
    if not 1 <= count <= MAX_VALUES:
        raise ValueError(f"{name}: the header says {promised}; 1 to {MAX_VALUES:,} values are read")
    content = file.read(count + 1)
    if len(content) != count:
        found = f"{len(content)} values" if len(content) < count else "more values"
        raise ValueError(f"{name}: {found}, but the header says {promised}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(shape)


def idx_folder(folder: Path) -> tuple[Labelled, Labelled]:
    """The parts for training and testing of a folder with the four files.

    Raises FileNotFoundError or ValueError, naming the file that is missing or amiss.
    """
    train, test = (_part(folder, part) for part in PARTS)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ValueError(
            f"{folder}: images for training are {_size(train)}, those for testing {_size(test)}"
        )
    return train, test


def _part(folder: Path, part: str) -> Labelled:
    images, labels = (_read(folder, f"{part}-{kind}") for kind in (IMAGES, LABELS))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not len(images):
        raise ValueError(
            f"{folder}: {part} has images {tuple(images.shape)} and labels {tuple(labels.shape)}; "
            "(rows, height, width) and (rows,) are needed"
        )
    return Labelled(images, labels)


def _read(folder: Path, name: str) -> Tensor:
    ways: tuple[tuple[Path, Callable[..., Any]], ...] = (
        (folder / name, open),
        (folder / f"{name}.gz", gzip.open),
    )
    for path, opened in ways:
        if path.is_file():
            try:
                with opened(path, "rb") as file:
                    return read_idx(file, str(path))
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise ValueError(f"{path}: {error}") from None
    raise FileNotFoundError(f"{folder} has no {name} or {name}.gz")


def _size(part: Labelled) -> str:
    return "x".join(map(str, part.images.shape[1:]))
