"""The layer against its dense twin: the same map with `W0 + scale * U S V^T` as one matrix."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from cases import SPECTRA, close, factors, normal
from rankwise.nn import LowRankLinear

Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D

M, N, R = 7, 5, 3
SCALE = 0.5


class Doubling(nn.Linear):
    """A subclass with a forward of its own, which no shortcut may bypass."""

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


class Packed(nn.Module):
    """Like a quantised layer: its weight has another type than what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = N, M
        self.weight = nn.Parameter(torch.randint(-9, 9, (M, N)), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.to(x.dtype) / 10)


def hooked() -> nn.Module:
    base = nn.Linear(N, M).double()
    base.register_forward_hook(lambda module, inputs, output: output + 1.0)
    return base


def pre_hooked() -> nn.Module:
    base = nn.Linear(N, M).double()
    base.register_forward_pre_hook(lambda module, inputs: (3.0 * inputs[0],))
    return base


BASES = {
    "no base": lambda: None,
    "linear": lambda: nn.Linear(N, M).double(),
    "linear without bias": lambda: nn.Linear(N, M, bias=False).double(),
    "Conv1D": lambda: Conv1D(M, N).double(),
    "subclass": lambda: Doubling(N, M).double(),
    "integer weight": Packed,
    "forward hook": hooked,
    "forward pre-hook": pre_hooked,
}
BATCHES = [(4, N), (2, 3, N), (2, 1, 3, N), (N,), (0, N), (1, N)]


def make(base: nn.Module | None, spectrum: str, draw, rank: int = R) -> LowRankLinear:
    return LowRankLinear(factors(M, N, SPECTRA[spectrum](rank), draw), base=base, scale=SCALE)


def twin(base: nn.Module | None, x: Tensor, weight: Tensor) -> Tensor:
    """`base(x) + scale * x weight^T`, whose gradient in `weight` is the `G` of the formulas."""
    y = linear(x, SCALE * weight)
    return y if base is None else base(x) + y


def check_against_twin(layer: LowRankLinear, x: Tensor, draw, tolerance: float = 1e-12) -> None:
    U, S, V = layer.factors()
    weight = layer.factors().dense().requires_grad_()
    x_twin = x.detach().clone().requires_grad_()
    y, y_twin = layer(x), twin(layer.base, x_twin, weight)
    dy = normal(*y_twin.shape, draw=draw)
    y.backward(dy)
    y_twin.backward(dy)
    G = weight.grad
    close(y, y_twin, tolerance)
    close(x.grad, x_twin.grad, tolerance)
    dK, dL, dS = layer.gradient()
    close(dK, G @ V, tolerance)
    close(dL, G.mT @ U, tolerance)
    close(dS, U.mT @ G @ V, tolerance)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("base", BASES)
def test_output_and_all_gradients_are_those_of_the_dense_twin(base, batch, draw):
    layer = make(BASES[base](), "generic", draw)
    check_against_twin(layer, normal(*batch, draw=draw).requires_grad_(), draw)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("rank", [1, 5])
def test_no_spectrum_spoils_a_gradient_for_no_inverse_occurs(spectrum, rank, draw):
    layer = make(nn.Linear(N, M).double(), spectrum, draw, rank)
    check_against_twin(layer, normal(4, N, draw=draw).requires_grad_(), draw)


def test_at_a_zero_core_the_gradients_do_not_vanish(draw):
    layer = make(nn.Linear(N, M).double(), "zero", draw)
    layer(normal(4, N, draw=draw)).square().sum().backward()
    assert all(bool(g.norm() > 0.1) for g in layer.gradient())


def test_a_bias_without_a_base_is_added_and_trained(draw):
    bias = normal(M, draw=draw)
    layer = LowRankLinear(factors(M, N, SPECTRA["generic"](R), draw), bias=bias, scale=SCALE)
    for batch in ((4, N), (2, 3, N), (N,)):
        layer.zero_grad()
        x, dy = normal(*batch, draw=draw), normal(*batch[:-1], M, draw=draw)
        y = layer(x)
        y.backward(dy)
        close(y, linear(x, SCALE * layer.factors().dense(), bias))
        close(layer.bias.grad, dy.reshape(-1, M).sum(0))


@pytest.mark.parametrize("base", ["linear", "Conv1D", "subclass"])
def test_the_base_is_frozen_and_gets_no_gradient(base, draw):
    module = BASES[base]()
    layer = make(module, "generic", draw)
    layer(normal(4, N, draw=draw)).sum().backward()
    assert [p.requires_grad for p in module.parameters()] == [False, False]
    assert all(p.grad is None for p in module.parameters())


def test_a_base_that_is_unfrozen_later_trains_like_any_layer(draw):
    module = nn.Linear(N, M).double()
    layer = make(module, "generic", draw)
    module.requires_grad_(True)
    x, dy = normal(4, N, draw=draw).requires_grad_(), normal(4, M, draw=draw)
    layer(x).backward(dy)
    close(module.weight.grad, dy.mT @ x)
    close(module.bias.grad, dy.sum(0))


def test_a_bias_that_is_unfrozen_later_trains_while_the_weight_stays(draw):
    module = nn.Linear(N, M).double()
    layer = make(module, "generic", draw)
    module.bias.requires_grad_(True)
    dy = normal(4, M, draw=draw)
    layer(normal(4, N, draw=draw)).backward(dy)
    close(module.bias.grad, dy.sum(0))
    assert module.weight.grad is None


def test_frozen_factors_get_no_gradient_and_let_it_through(draw):
    layer = make(nn.Linear(N, M).double(), "generic", draw).requires_grad_(False)
    x = normal(4, N, draw=draw).requires_grad_()
    layer(x).backward(torch.ones(4, M, dtype=torch.float64))
    close(x.grad, torch.ones(4, M).double() @ (layer.base.weight + SCALE * layer.factors().dense()))
    assert layer.gradient() == (None, None, None)


def test_gradients_accumulate_over_backward_passes(draw):
    layer = make(nn.Linear(N, M).double(), "generic", draw)
    x = normal(6, N, draw=draw)
    layer(x).square().sum().backward()
    whole = [g.clone() for g in layer.gradient()]
    layer.zero_grad()
    for part in x.split(2):
        layer(part).square().sum().backward()
    for got, expected in zip(layer.gradient(), whole, strict=True):
        close(got, expected)


def test_a_merged_layer_is_its_base_alone(draw):
    layer = make(nn.Linear(N, M).double(), "generic", draw)
    x = normal(4, N, draw=draw)
    layer.merged = True
    close(layer(x), layer.base(x))
