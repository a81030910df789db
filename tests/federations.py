"""Small federations in float64: least squares on clients whose data differ."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rankwise.federated import Client, Samples, Server
from rankwise.nn.linear import LowRankLinear
from rankwise.numerics.factors import Factors
from rankwise.numerics.orth import orthonormalise


def square_error(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Half the mean over samples of `||y - model(x)||^2`."""
    return (model(x) - y).square().sum(1).mean() / 2


class LeastSquares(NamedTuple):
    """`min_W sum_c n_c f_c(W) / sum_c n_c`, `f_c` the square error of client c."""

    data: dict[str, tuple[Tensor, Tensor]]
    optimum: Tensor
    """(m, n), of known rank."""

    def pooled(self) -> tuple[Tensor, Tensor]:
        x, y = zip(*self.data.values(), strict=True)
        return torch.cat(x), torch.cat(y)

    def gradient(self, W: Tensor) -> Tensor:
        """Of the common loss."""
        x, y = self.pooled()
        return (x @ W.mT - y).mT @ x / len(x)


def heterogeneous(
    draw: torch.Generator, m: int = 10, n: int = 8, rank: int = 3, counts=(20, 30, 40, 50)
) -> LeastSquares:
    """Each client pulls to a matrix of its own, of full rank; where the pulls cancel, rank is low.

    Client c has targets `(W + D_c) x`, and `sum_c D_c X_c^T X_c = 0`.
    """
    W = rand(draw, m, rank) @ rand(draw, rank, n) / 3
    spreads = [0.5 + torch.rand(n, generator=draw, dtype=torch.float64) for _ in counts]
    inputs = [rand(draw, k, n) * s for k, s in zip(counts, spreads, strict=True)]
    moments = [x.mT @ x for x in inputs]
    pulls = [rand(draw, m, n) for _ in counts[1:]]
    products = (D @ H for D, H in zip(pulls, moments[1:], strict=True))
    others = sum(products, torch.zeros(m, n, dtype=torch.float64))
    pulls = [-others @ torch.linalg.inv(moments[0]), *pulls]
    data = {
        f"client {i}": (x, x @ (W + D).mT)
        for i, (x, D) in enumerate(zip(inputs, pulls, strict=True))
    }
    return LeastSquares(data, W)


def rand(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def factors(draw: torch.Generator, m: int, n: int, rank: int, size: float = 1.0) -> Factors:
    """Random orthonormal bases and a core that is not symmetric."""
    U, V = (orthonormalise(rand(draw, k, rank)) for k in (m, n))
    return Factors(U, size * rand(draw, rank, rank), V)


def low_rank(draw: torch.Generator, m: int, n: int, rank: int, size: float = 1.0) -> LowRankLinear:
    return LowRankLinear(factors(draw, m, n, rank, size))


def dense(m: int, n: int) -> nn.Linear:
    """Without bias; starts at an identity, cut or padded."""
    layer = nn.Linear(n, m, bias=False, dtype=torch.float64)
    nn.init.eye_(layer.weight)
    return layer


def weight(model: nn.Module) -> Tensor:
    """Of a model that is one layer, as a matrix."""
    return model.factors().dense() if isinstance(model, LowRankLinear) else model.weight.detach()


def federation(model, method, data, loss=square_error, **options):
    """Server and clients of one process, which share `model`."""
    server = Server(model, method, list(data), **options)
    return server, {
        name: Client(
            name,
            model,
            method,
            loss,
            tensors if isinstance(tensors, Samples) else Samples(*tensors),
        )
        for name, tensors in data.items()
    }


def answers(round, clients):
    """What all participants answer."""
    return [clients[name].answer(round.request) for name in round.participants]


def bits(state) -> dict[str, bytes]:
    """The exact content of arrays, for comparison."""
    return {n: (*t.shape, t.contiguous().numpy().tobytes()) for n, t in state.items()}
