"""A small model of blocks with adapters of every kind, and FSDP2 around it."""

import torch
import torch._dynamo  # FSDP2 needs it; imported here once, and not in every fork.
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

import rankwise as rw
from rankwise.distributed.sharded import whole
from rankwise.numerics.factors import Factors
from rankwise.surgery.adapter import adapter_for

WORDS, WIDTH, CLASSES, LENGTH = 11, 10, 3, 6
"""None is a multiple of 4: processes have parts of different sizes, and some have none."""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(WIDTH, WIDTH + 3)
        self.norm = nn.LayerNorm(WIDTH + 3)
        self.b = nn.Linear(WIDTH + 3, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.tanh(self.norm(self.a(x))))


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.checkpointing: bool | None = None
        """Whether by reentrant checkpoints; None: there are none."""

    def forward(self, words: Tensor) -> Tensor:
        x = self.conv(self.embedding(words).mT).mT
        for block in self.blocks:
            if self.checkpointing is None:
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.checkpointing)
        return self.head(self.dropout(x.mean(1)))


def network(dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> Net:
    """Adapters around embedding, convolution and linear maps; norms and head train densely."""
    torch.manual_seed(3)
    net = Net(dropout).to(dtype)
    rw.adapt_(net, rank=2, select="blocks.*", train=["norm", "head"])
    net.embedding = adapter_for(net.embedding, _factors(WORDS, WIDTH, dtype), 1.0)
    net.conv = adapter_for(net.conv, _factors(WIDTH, 3 * WIDTH, dtype), 1.0)
    return net


def _factors(m: int, n: int, dtype: torch.dtype) -> Factors:
    U, V = (torch.linalg.qr(torch.randn(k, 2, dtype=dtype))[0] for k in (m, n))
    return Factors(U, 0.1 * torch.eye(2, dtype=dtype), V)


def shard_(net: Net, replicas: rw.distributed.Replicas, **given: object) -> Net:
    """FSDP2 around one base alone, each block, and the whole."""
    apart = set(replicas.factors)
    fully_shard(net.blocks[0].a.base, **given)
    for part in (*net.blocks, net):
        fully_shard(part, ignored_params=apart, **given)
    return net


def batch(step: int, rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """The same on every process."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randint(WORDS, (rows, LENGTH), generator=generator)
    return x, torch.randn(rows, CLASSES, generator=generator).to(dtype)


def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (net(x).to(y.dtype) - y).square().mean()


def gradient_error(net: nn.Module, reference: nn.Module) -> float:
    """Largest relative error of a gradient; both have the same parameters."""
    errors = [0.0]
    for (name, p), q in zip(net.named_parameters(), reference.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if q.grad is not None:
            errors.append(float((whole(p.grad) - q.grad).norm() / q.grad.norm()))
    return max(errors)


def weight_error(net: nn.Module, reference: nn.Module) -> float:
    pairs = zip(net.parameters(), reference.parameters(), strict=True)
    return max(float((whole(p.detach()) - whole(q.detach())).abs().max()) for p, q in pairs)
