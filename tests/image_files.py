"""Small image data on disk: bright squares, whose corner tells the class."""

import gzip
from pathlib import Path

import torch
from torch import Tensor

SIZE = 12
CORNERS = ((1, 1), (1, 6), (6, 1))


def squares(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Bytes (rows, 12, 12) with noise, and labels (rows,) of three classes."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (rows, SIZE, SIZE), generator=draw, dtype=torch.uint8)
    labels = torch.arange(rows) % len(CORNERS)
    for image, label in zip(images, labels, strict=True):
        i, j = CORNERS[int(label)]
        image[i : i + 4, j : j + 4] += 150
    return images, labels.to(torch.uint8)


def idx_bytes(values: Tensor) -> bytes:
    header = bytes([0, 0, 8, values.ndim])
    axes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return header + axes + bytes(values.flatten().tolist())


def write_idx(folder: Path, *, zipped: bool = False, rows: int = 60) -> Path:
    """The four files of a data set."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, seed in (("train", 0), ("t10k", 1)):
        images, labels = squares(rows, seed)
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx_bytes(values)
            path = folder / f"{part}-{name}-ubyte"
            if zipped:
                path = path.with_name(f"{path.name}.gz")
                content = gzip.compress(content)
            path.write_bytes(content)
    return folder
