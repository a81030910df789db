"""Networks and batches for scenes on several processes."""

import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.nn.tucker import TuckerConv2d

RULE = rw.Tolerance(rtol=0.2, every=3, grow=2)
"""Changes a rank two times in three steps."""


def network(*, head: bool = True, seed: int = 3, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Adapters and weights of low rank, matrices and a Tucker kernel; `head` trains or nothing."""
    torch.manual_seed(seed)
    conv = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Tanh())
    kernel = nn.Sequential(nn.Conv2d(6, 4, 3), nn.Tanh(), nn.Flatten())
    rest = nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 9), nn.Tanh())
    model = nn.Sequential(conv, kernel, rest, nn.Linear(9, 3)).to(dtype)
    rw.adapt_(model, rank=2, select=["2.0", "2.2"])
    rw.factorize_(model, rank=2, select=["0.0"])
    rw.factorize_(model, rank=2, select=["1.0"], convolution=TuckerConv2d)
    for layer in (model[0][0], model[1][0]):
        for p in layer.factor_parameters():
            p.requires_grad_()
    for name, p in model.named_parameters():
        if name.endswith("bias") and ".base." not in name:
            p.requires_grad_(head)
    model[3].requires_grad_(head)
    return model


def batch(step: int, count: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(step)
    x = torch.randn(count, 1, 4, 4, generator=g, dtype=torch.float64)
    return x.to(dtype), torch.randn(count, 3, generator=g, dtype=torch.float64).to(dtype)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x) - y).square().mean()


def part(rank: int, world: int, t: Tensor) -> Tensor:
    """The rows of a global batch that are one process's."""
    return t.chunk(world)[rank]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest difference, relative to the largest entry of each tensor."""
    assert a.keys() == b.keys()
    tiny = 1e-30
    return max(float((a[n] - b[n]).abs().max() / b[n].abs().max().clamp_min(tiny)) for n in a)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def same(several: list[dict[str, Tensor]]) -> bool:
    """Whether all processes hold the same bits."""
    first = several[0]
    return all(
        other.keys() == first.keys() and all(torch.equal(other[n], first[n]) for n in first)
        for other in several[1:]
    )
