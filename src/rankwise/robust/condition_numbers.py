"""The condition numbers of a network's weights."""

import torch
from torch import nn

from rankwise.nn.low_rank import LowRankModule
from rankwise.numerics.condition import condition_number
from rankwise.numerics.tucker import first_mode


@torch.no_grad()
def condition_numbers(model: nn.Module) -> dict[str, float]:
    """`sigma_1 / sigma_r` by layer name, as it runs: of low-rank layers on their rank.

    Of Tucker kernels it is that of the matrix (out, in kh kw), of adapters that of what they add;
    of plain linear and convolutional layers that of the weight as a matrix, all of it. 1 where
    nothing is there, inf where a singular value is zero.
    """
    found = {}
    bases = {m.base for m in model.modules() if isinstance(m, LowRankModule)}
    for name, module in model.named_modules():
        if module in bases:
            continue
        if isinstance(module, LowRankModule):
            matrix = first_mode(module.factors()[1])
        elif isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            matrix = module.weight.detach().flatten(1)
        else:
            continue
        found[name] = condition_number(torch.linalg.svdvals(matrix.double()))
    values = torch.stack([v.cpu() for v in found.values()]).tolist() if found else []
    return dict(zip(found, values, strict=True))
