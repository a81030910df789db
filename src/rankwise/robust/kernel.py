"""Upper bounds of the l2 norm of a convolution with zero padding, from its kernel.

Two bounds hold, and the smaller is taken.

*Torus.* On a torus of at least `H + dilation (kh - 1)` rows, and columns likewise, nothing of the
image wraps, so that the convolution, whatever its zero padding, is a part of the periodic one. Each
frequency of that is multiplied by one matrix `K(w) = sum_k W[:, :, k] exp(i w k)` (Sedghi, Gupta
and Long, 2019). A stride that divides the torus leaves one output in `s`, for which `s` frequencies
look the same and are added up: the norm is the largest `||[K(w_1) ... K(w_s)]||_2 / sqrt(s)`.

*Patches.* One number of the image is in at most `c = ceil(k gcd(s, dilation) / s)` patches in each
direction, so that the norm is at most `sqrt(c_h c_w)` times that of `W` as (out, in kh kw). It is
the norm where patches do not overlap.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rankwise.nn.geometry import Geometry, Pair
from rankwise.robust.reachable import SAFETY

CHUNK = 2**22
"""Complex numbers of transformed kernels held at once, 64 MiB."""


class Kernel(NamedTuple):
    """Kernels (groups, out / groups, in / groups, kh, kw) in float64, and how they move.

    Orthonormal maps of channels, before or after the convolution, may be left out.
    """

    weight: Tensor
    geometry: Geometry

    def norm(self, size: Pair) -> float:
        """At least the l2 norm of the convolution of images of this (height, width)."""
        bound = self.patch_bound()
        overlap = any(count > 1 for count in occurrences(self.geometry))
        return min(bound, self.torus_bound(size)) if overlap else bound

    def patch_bound(self) -> float:
        """The bound by patches, for images of any size."""
        sigma = torch.linalg.svdvals(self.weight.flatten(2)).max()
        return float(sigma) * math.sqrt(math.prod(occurrences(self.geometry))) * (1.0 + SAFETY)

    def torus_bound(self, size: Pair) -> float:
        """The bound by frequencies, for images of this (height, width)."""
        (rows, columns), squared = self._phases(size), 0.0
        groups, out, into = self.weight.shape[:3]
        aliases = len(rows) * len(columns)
        kernels = self.weight.permute(3, 4, 0, 1, 2).reshape(-1, groups * out * into)
        kernels = kernels.to(torch.complex128)
        # The kernel is real: half of the frequencies have the norms of the other half.
        half = rows.shape[1] // 2 + 1
        phases = torch.einsum("apk,bql->pqabkl", rows[:, :half], columns)
        phases = phases.reshape(-1, aliases, kernels.shape[0])
        for part in phases.split(max(1, CHUNK // (aliases * kernels.shape[1]))):
            seen = (part @ kernels).unflatten(-1, (groups, out, into))
            joined = seen.permute(0, 2, 3, 1, 4).flatten(3)
            wide = joined.shape[-2] <= joined.shape[-1]
            gram = joined @ joined.mH if wide else joined.mH @ joined
            squared = max(squared, float(torch.linalg.eigvalsh(gram)[..., -1].max()))
        return math.sqrt(max(squared, 0.0) / aliases) * (1.0 + SAFETY)

    def _phases(self, size: Pair) -> list[Tensor]:
        """Of each direction `exp(i w k)`, (aliases, frequencies, places of the kernel)."""
        found = []
        for pixels, kernel, stride, _, dilation in zip(size, *self.geometry, strict=True):
            reached = pixels + dilation * (kernel - 1)
            torus = stride * math.ceil(reached / stride)
            steps = torch.arange(torus)[:, None] * torch.arange(kernel) * dilation % torus
            angles = steps.double() * (2.0 * math.pi / torus)
            found.append(torch.polar(torch.ones_like(angles), angles).unflatten(0, (stride, -1)))
        return found


def occurrences(geometry: Geometry) -> Pair:
    """In how many patches a pixel is at most, by rows and by columns."""
    rows, columns = (
        math.ceil(kernel * math.gcd(stride, dilation) / stride)
        for kernel, stride, _, dilation in zip(*geometry, strict=True)
    )
    return rows, columns
