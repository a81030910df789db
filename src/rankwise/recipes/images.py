"""Labelled images to train on and to test on, from where the user says."""

import hashlib
import json
import struct
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rankwise.io.ordinary import ordinary
from rankwise.recipes import fashion_mnist
from rankwise.recipes.idx import Labelled, idx_folder
from rankwise.recipes.mnist import mnist_parts

SUFFIXES = (".png", ".jpg", ".jpeg")
FOLDERS = ("train", "test")
FORMATS = ("PNG", "JPEG")
"""By content, whatever the name: Pillow opens others by programs that are not its own."""
MAX_PIXELS = 2**24
"""Of a picture; a small file can say that it is of any size."""


class Images(NamedTuple):
    """Images (rows, channels, height, width), mean 0 and deviation 1 in each channel; labels."""

    train: Tensor
    labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    """Of each channel of the training pixels in [0, 1]: `(pixels - mean) / deviation` are these."""

    def pixels(self, x: Tensor) -> Tensor:
        """Of scaled images (rows, channels, height, width), in [0, 1]."""
        shape = (-1, 1, 1)
        mean, deviation = (x.new_tensor(v).view(shape) for v in (self.mean, self.deviation))
        return (x * deviation + mean).clamp_(0.0, 1.0)


def read_images(data: str) -> Images:
    """`fashion-mnist`, `mnist`, a folder of four idx files, or one of `train/<class>/` images.

    Raises FileNotFoundError, ValueError, ImportError or RuntimeError with what to do.
    """
    if data == "mnist":
        return _of_parts(*mnist_parts())
    if data == "fashion-mnist":
        parts = idx_folder(fashion_mnist.fashion_mnist_folder())
        return _of_parts(*parts)._replace(classes=fashion_mnist.CLASSES)
    folder = Path(data)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"--data {data} is no folder, and none of the built-in fashion-mnist and mnist"
        )
    if all((folder / name).is_dir() for name in FOLDERS):
        return _of_pictures(folder)
    if not any(folder.glob("*-ubyte*")):
        raise ValueError(
            f"{folder} holds neither idx files such as train-images-idx3-ubyte.gz nor the folders "
            "train/<class> and test/<class>"
        )
    return _of_parts(*idx_folder(folder))


def rows_at(step: int, *, count: int, batch_size: int, seed: int) -> Tensor:
    """Indices of the batch of step 0, 1, ...; as `examples.batch_at`, for many rows."""
    batch_size = min(batch_size, count)
    epoch, place = divmod(step, count // batch_size)
    return _order(count, seed, epoch)[place * batch_size : (place + 1) * batch_size]


@lru_cache(maxsize=1)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    draw = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    return torch.randperm(count, generator=draw)


def fingerprint(data: Images) -> str:
    """Of classes, images and labels; the same for the same data on every machine."""
    digest = hashlib.sha256(json.dumps(data.classes).encode())
    for part in data[:4]:
        digest.update(part.numpy().data)
    return digest.hexdigest()


def _of_parts(train: Labelled, test: Labelled) -> Images:
    if int(test.labels.max()) > int(train.labels.max()):
        raise ValueError(
            f"label {int(test.labels.max())} of the test part does not occur in the other"
        )
    classes = tuple(map(str, range(int(train.labels.max()) + 1)))
    return _scaled(train.images[:, None], train.labels, test.images[:, None], test.labels, classes)


def _scaled(
    train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, classes: tuple[str, ...]
) -> Images:
    values, held_out = train.float() / 255, test.float() / 255
    mean = values.mean((0, 2, 3), keepdim=True)
    deviation = values.std((0, 2, 3), keepdim=True).clamp_min(1e-6)
    for part in (values, held_out):
        part.sub_(mean).div_(deviation)
    scales = (tuple(t.flatten().tolist()) for t in (mean, deviation))
    return Images(values, labels.long(), held_out, test_labels.long(), classes, *scales)


def _of_pictures(folder: Path) -> Images:
    classes = tuple(sorted(f.name for f in (folder / FOLDERS[0]).iterdir() if f.is_dir()))
    if len(classes) < 2:
        raise ValueError(f"{folder / FOLDERS[0]} has {len(classes)} folders of classes; two needed")
    files = [
        [
            (path, label)
            for label, name in enumerate(classes)
            for path in _pictures(folder, part, name)
        ]
        for part in FOLDERS
    ]
    for part, found in zip(FOLDERS, files, strict=True):
        if not found:
            raise ValueError(f"{folder / part} has no {', '.join(SUFFIXES)} of {classes}")
    first = _pixels(files[0][0][0], None)
    parts = [
        (
            torch.stack([_pixels(path, first) for path, _ in found]),
            torch.tensor([y for _, y in found]),
        )
        for found in files
    ]
    return _scaled(*parts[0], *parts[1], classes)


def _pictures(folder: Path, part: str, name: str) -> list[Path]:
    paths = sorted((folder / part / name).glob("*"))
    return [path for path in paths if path.suffix.lower() in SUFFIXES]


def _pixels(path: Path, like: Tensor | None) -> Tensor:
    """(channels, height, width); grey pictures have one channel, all others three."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading pictures needs Pillow: pip install pillow") from error
    damage = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
    with open(path, "rb", opener=ordinary) as file:
        try:
            picture = Image.open(file, formats=FORMATS)
        except damage as error:
            raise ValueError(f"{path} is no whole picture in PNG or JPEG: {error}") from error
        _check_size(path, picture.size, like)
        grey = like.shape[0] == 1 if like is not None else picture.mode in ("1", "L")
        try:
            content = bytearray(picture.convert("L" if grey else "RGB").tobytes())
        except (*damage, EOFError) as error:
            raise ValueError(f"{path} is no whole picture in PNG or JPEG: {error}") from error
        shape = (picture.height, picture.width, 1 if grey else 3)
    return torch.frombuffer(content, dtype=torch.uint8).reshape(shape).permute(2, 0, 1)


def _check_size(path: Path, size: tuple[int, int], like: Tensor | None) -> None:
    """By the header, before pixels are unpacked."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{path} is {width}x{height}; {MAX_PIXELS:,} pixels are the most")
    if like is not None and (height, width) != like.shape[1:]:
        raise ValueError(
            f"{path} is {width}x{height}, the first picture is "
            f"{like.shape[2]}x{like.shape[1]}; all must be of one size"
        )
