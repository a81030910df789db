"""Cores between fixed bases: they need not be square, and their gradient is that of the weight."""

import pytest
import torch
from torch import nn

from rankwise.nn.conv import LowRankConv2d
from rankwise.nn.conv1d import LowRankConv1d
from rankwise.nn.embedding import LowRankEmbedding
from rankwise.nn.linear import LowRankLinear
from rankwise.numerics.factors import Factors
from rankwise.numerics.orth import orthonormalise


def rand(draw, *shape):
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


LAYERS = {
    "linear": (
        lambda f: LowRankLinear(f, scale=0.5),
        12,
        (5, 12),
        lambda x, W: 0.5 * x @ W.mT,
    ),
    "adapter": (
        lambda f: LowRankLinear(f, base=nn.Linear(12, 6, bias=False).double(), scale=2.0),
        12,
        (5, 12),
        lambda x, W: 2.0 * x @ W.mT,
    ),
    "conv2d": (
        lambda f: LowRankConv2d(f, 2, padding=1),
        12,
        (2, 3, 4, 4),
        lambda x, W: nn.functional.conv2d(x, W.reshape(6, 3, 2, 2), padding=1),
    ),
    "conv1d": (
        lambda f: LowRankConv1d(f, 4),
        12,
        (2, 3, 7),
        lambda x, W: nn.functional.conv1d(x, W.reshape(6, 3, 4)),
    ),
    "embedding": (
        LowRankEmbedding,
        12,
        None,
        lambda x, W: nn.functional.embedding(x, W),
    ),
}


@pytest.mark.parametrize("rows, columns", [(2, 5), (5, 2), (6, 3)])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_rectangular_core_trains_between_frozen_bases(draw, kind, rows, columns):
    make, n, shape, dense = LAYERS[kind]
    U, V = (orthonormalise(rand(draw, k, r)) for k, r in ((6, rows), (n, columns)))
    S = rand(draw, rows, columns)
    layer = make(Factors(U[:, :2], torch.zeros(2, 2).double(), V[:, :2]))
    layer.set_factors_((U, S, V))
    layer.U.requires_grad_(False)
    layer.V.requires_grad_(False)
    x = torch.tensor([[0, 5, 5], [2, 1, 0]]) if shape is None else rand(draw, *shape)
    W = (U @ S @ V.mT).requires_grad_()
    expected = dense(x, W)
    y = layer(x) - (0 if layer.base is None else layer.base(x))
    torch.testing.assert_close(y, expected)
    along = rand(draw, *y.shape)
    (G,) = torch.autograd.grad((expected * along).sum(), W)
    (slot,) = torch.autograd.grad((y * along).sum(), layer.S)
    torch.testing.assert_close(slot, U.mT @ G @ V)
