"""Reading idx files, the format of MNIST and Fashion-MNIST: plain or gzipped."""

import gzip
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

PARTS = ("train", "t10k")
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
UNSIGNED_BYTES = 0x08


class Labelled(NamedTuple):
    """Grey values (rows, height, width) and labels (rows,), bytes both."""

    images: Tensor
    labels: Tensor


def read_idx(content: bytes, name: str) -> Tensor:
    """The array of bytes in `content`; ValueError with the file's `name` if it is none.

    Two zero bytes, the type, the number of axes, each axis as four bytes with the highest first.
    """
    axes = content[3] if len(content) > 3 else 0
    start = 4 + 4 * axes
    if content[:3] != bytes([0, 0, UNSIGNED_BYTES]) or len(content) < start:
        raise ValueError(f"{name}: not an idx file of unsigned bytes")
    shape = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes)]
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:]
    if values.numel() != torch.Size(shape).numel():
        raise ValueError(
            f"{name}: {values.numel()} values, but the header says {'x'.join(map(str, shape))}"
        )
    return values.reshape(shape)


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
    for path, opened in ((folder / name, open), (folder / f"{name}.gz", gzip.open)):
        if path.is_file():
            try:
                with opened(path, "rb") as file:
                    return read_idx(file.read(), str(path))
            except (gzip.BadGzipFile, EOFError) as error:
                raise ValueError(f"{path}: {error}") from None
    raise FileNotFoundError(f"{folder} has no {name} or {name}.gz")


def _size(part: Labelled) -> str:
    return "x".join(map(str, part.images.shape[1:]))
