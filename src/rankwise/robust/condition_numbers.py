"""The condition numbers of a network's weights."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rankwise.nn.base import check_module
from rankwise.nn.low_rank import LowRankModule
from rankwise.numerics.condition import condition_number
from rankwise.numerics.tucker import first_mode


def condition_numbers(model: nn.Module) -> dict[str, float]:
    """`sigma_1 / sigma_r` by layer name: of low-rank layers on their rank.

    Of Tucker kernels it is that of the matrix (out, in kh kw), of adapters that of what they add;
    of plain linear and convolutional layers that of the weight as a matrix, all of it. 1 where
    nothing is there, inf where a singular value is zero.
    """
    check_module(model)
    bases = {m.base for m in model.modules() if isinstance(m, LowRankModule)}
    plain = (nn.Linear, nn.modules.conv._ConvNd, LowRankModule)
    named = [(n, m) for n, m in model.named_modules() if isinstance(m, plain) and m not in bases]
    return conditions_of(named)


@torch.no_grad()
def conditions_of(layers: Iterable[tuple[str, nn.Module]]) -> dict[str, float]:
    """Those of named layers, by one copy from the device."""
    found = {name: condition_number(torch.linalg.svdvals(_matrix(m))) for name, m in layers}
    values = torch.stack([v.cpu() for v in found.values()]).tolist() if found else []
    return dict(zip(found, values, strict=True))


def _matrix(layer: nn.Module) -> Tensor:
    """One with the singular values of the layer's weight."""
    if isinstance(layer, LowRankModule):
        return first_mode(layer.factors()[1]).double()
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.detach().flatten(1).double()
