"""Tucker kernels of chosen cores in float64, and what dense linear algebra says of them."""

import torch
from torch import Tensor

from cases import normal, orthonormal
from rankwise.numerics.tucker import Tucker

CORES = {
    "generic": lambda size, draw: normal(*size, draw=draw),
    "equal singular values": lambda size, draw: orthonormal(
        size[1] * size[2] * size[3], size[0], draw
    ).mT.reshape(size),
    "rank 1": lambda size, draw: torch.einsum(
        "a,b,y,x->abyx", *(normal(extent, draw=draw) for extent in size)
    ),
    "graded to 1e-8": lambda size, draw: (
        normal(*size, draw=draw)
        * torch.logspace(0, -8, size[0], dtype=torch.float64)[:, None, None, None]
    ),
    "zero": lambda size, draw: torch.zeros(size, dtype=torch.float64),
}

# (out, in, (kh, kw), (p, q))
KERNELS = [
    (7, 5, (3, 3), (3, 2)),
    (7, 5, (3, 2), (2, 4)),
    (5, 7, (1, 3), (1, 1)),
    (6, 4, (2, 1), (6, 4)),
    (6, 5, (1, 1), (3, 3)),
    (9, 4, (2, 2), (8, 2)),
]


def tucker(out_channels, in_channels, kernel, ranks, draw, core="generic") -> Tucker:
    p, q = ranks
    return Tucker(
        orthonormal(out_channels, p, draw),
        CORES[core]((p, q, *kernel), draw),
        orthonormal(in_channels, q, draw),
    )


def kernel_of(core: Tensor, U: Tensor, V: Tensor) -> Tensor:
    """The definition, `sum_{a, b} core[a, b] U[o, a] V[i, b]`."""
    return torch.einsum("abyx,oa,ib->oiyx", core, U, V)


def modes(W: Tensor) -> tuple[Tensor, Tensor]:
    """`W` as the matrices (out, in k) and (in, out k)."""
    return W.flatten(1), W.transpose(0, 1).flatten(1)


def tangent_basis(f: Tucker) -> Tensor:
    """Orthonormal columns that span all derivatives of the kernel by its factors."""
    directions = []
    for place, factor in enumerate(f):
        for unit in torch.eye(factor.numel(), dtype=factor.dtype):
            moved = [factor if i != place else unit.view_as(factor) for i, factor in enumerate(f)]
            directions.append(kernel_of(moved[1], moved[0], moved[2]).flatten())
    P, sigma, _ = torch.linalg.svd(torch.stack(directions, 1), full_matrices=False)
    return P[:, sigma > 1e-10 * sigma[0]]


def tail(X: Tensor, rank: int) -> Tensor:
    """What the best approximation of that rank leaves of a matrix."""
    return torch.linalg.svdvals(X)[rank:].norm()
