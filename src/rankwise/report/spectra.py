"""Singular values of all layers at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rankwise.numerics.tucker import first_mode
from rankwise.optim.layers import NamedLayer


@torch.no_grad()
def spectra(layers: Sequence[NamedLayer]) -> list[list[float]]:
    """Descending singular values of each layer's weight, without its base and its `scale`.

    Of a Tucker kernel those of the matrix (out, in kh kw). One copy from the device: cores are
    small, and after a step that of a matrix is diagonal.
    """
    cores = [first_mode(layer.factors()[1]) for _, layer in layers]
    if not cores:
        return []
    numbers = torch.cat([core.double().reshape(-1) for core in cores]).cpu()
    parts = numbers.split([core.numel() for core in cores])
    return [
        _singular_values(part.view(core.shape)).tolist()
        for part, core in zip(parts, cores, strict=True)
    ]


def _singular_values(core: Tensor) -> Tensor:
    diagonal = core.diagonal()
    if core.shape[0] == core.shape[1] and int(core.count_nonzero() - diagonal.count_nonzero()) == 0:
        return diagonal.abs().sort(descending=True).values
    return torch.linalg.svdvals(core)
