"""The layer under what torch does to a model: autocast, checkpoints, vmap, compile."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

from cases import SPECTRA, close, factors, normal
from compilers import Counting
from rankwise.nn import LowRankEmbedding, LowRankLinear
from rankwise.nn.function import low_rank_product
from rankwise.numerics.init import truncated_svd

M, N, R = 7, 5, 3


def make(draw, base: bool = True, dtype: torch.dtype = torch.float64) -> LowRankLinear:
    module = nn.Linear(N, M, dtype=dtype) if base else None
    f = factors(M, N, SPECTRA["generic"](R), draw)
    return LowRankLinear(type(f)(*(t.to(dtype) for t in f)), base=module, scale=0.5)


def gradients(layer: LowRankLinear) -> list[torch.Tensor]:
    found = [g.clone() for g in layer.gradient()]
    layer.zero_grad()
    return found


@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_type_and_returns_gradients_in_float32(base, dtype, draw):
    layer = make(draw, base, torch.float32)
    x = normal(64, N, draw=draw).float().requires_grad_()
    dy = normal(64, M, draw=draw).float()
    layer(x).backward(dy)
    exact, exact_dx = gradients(layer), x.grad.clone()
    x.grad = None
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
    y.backward(dy.to(dtype))
    assert y.dtype == dtype and x.grad.dtype == torch.float32
    for got, expected in zip([*gradients(layer), x.grad], [*exact, exact_dx], strict=True):
        assert got.dtype == torch.float32
        assert (got - expected).norm() < 2e-2 * expected.norm()
    with torch.no_grad():
        assert (y - layer(x)).norm() < 2e-2 * y.norm()


def test_autocast_keeps_float32_gradients_on_a_base_that_has_to_be_called(draw):
    layer = make(draw, True, torch.float32)
    layer.base.register_forward_hook(lambda module, inputs, output: output)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(normal(4, N, draw=draw).float())
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert {g.dtype for g in layer.gradient()} == {torch.float32}


def test_float32_factors_serve_a_bfloat16_base(draw):
    base = nn.Linear(N, M, dtype=torch.bfloat16)
    f = factors(M, N, SPECTRA["generic"](R), draw)
    layer = LowRankLinear(type(f)(*(t.float() for t in f)), base=base)
    y = layer(normal(4, N, draw=draw).bfloat16())
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert {g.dtype for g in layer.gradient()} == {torch.float32}


@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(use_reentrant, base, draw):
    first, second = make(draw, base), make(draw, base)
    model = nn.Sequential(first, nn.Tanh(), nn.Linear(M, N).double(), second)
    x = normal(4, N, draw=draw).requires_grad_()
    model(x).square().sum().backward()
    plain, dx = gradients(first) + gradients(second), x.grad.clone()
    x.grad = None
    checkpoint(model, x, use_reentrant=use_reentrant).square().sum().backward()
    for got, expected in zip(gradients(first) + gradients(second), plain, strict=True):
        close(got, expected)
    close(x.grad, dx)


@pytest.mark.parametrize("base", [True, False])
def test_per_sample_gradients_by_vmap_are_those_of_a_loop(base, draw):
    layer = make(draw, base)
    x, dy = normal(6, N, draw=draw), normal(6, M, draw=draw)
    factors_only = {name: getattr(layer, name).detach() for name in "USV"}

    def loss(parameters, x, dy):
        return (functional_call(layer, parameters, (x,)) * dy).sum()

    together = vmap(grad(loss), in_dims=(None, 0, 0))(factors_only, x, dy)
    for i in range(6):
        (layer(x[i : i + 1]) * dy[i]).sum().backward()
        for name, expected in zip("UVS", gradients(layer), strict=True):
            close(together[name][i], expected)


@pytest.mark.parametrize("base", [True, False])
def test_a_compiled_layer_is_the_layer_also_after_a_change_of_rank(base, draw):
    torch.compiler.reset()
    layer = make(draw, base)
    backend = Counting()
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    # A graph of an old rank goes unseen here, but code made of it fails: hence the count.
    for graphs, rank in enumerate((R, 2, 4), 1):
        layer.set_factors_(truncated_svd(normal(M, N, draw=draw), rank))
        x = normal(4, N, draw=draw).requires_grad_()
        dy = normal(4, M, draw=draw)
        y = layer(x)
        y.backward(dy)
        eager, dx = gradients(layer), x.grad.clone()
        x.grad = None
        z = compiled(x)
        assert backend.graphs == graphs
        z.backward(dy)
        close(z, y)
        close(x.grad, dx)
        for got, expected in zip(gradients(layer), eager, strict=True):
            close(got, expected)


def test_a_deep_copy_is_a_layer_of_its_own(draw):
    layer = make(draw)
    twin = copy.deepcopy(layer)
    x = normal(4, N, draw=draw)
    assert torch.equal(twin(x), layer(x))
    before = layer(x).detach()
    twin.set_factors_(truncated_svd(normal(M, N, draw=draw), 1))
    assert (twin.rank, layer.rank) == (1, R)
    assert torch.equal(layer(x), before)


def test_double_backward_in_the_input_is_that_of_the_dense_twin(draw):
    layer = make(draw)
    x = normal(4, N, draw=draw).requires_grad_()
    (dx,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
    (ddx,) = torch.autograd.grad(dx.square().sum(), x)
    W = layer.base.weight + 0.5 * layer.factors().dense()
    y = nn.functional.linear(x, W, layer.base.bias)
    (dx_twin,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    (ddx_twin,) = torch.autograd.grad(dx_twin.square().sum(), x)
    close(ddx, ddx_twin)


@pytest.mark.parametrize("places", [(4,), (2, 3)], ids=str)
@pytest.mark.parametrize("base", [True, False])
def test_what_comes_after_a_layer_may_work_in_place(base, places, draw):
    layer, x = make(draw, base), normal(*places, N, draw=draw)
    layer(x).relu().square().sum().backward()
    expected = gradients(layer)
    y = layer(x)
    assert y._base is None and y.shape == (*places, M)
    nn.ReLU(inplace=True)(y).square().sum().backward()
    assert all(map(torch.equal, gradients(layer), expected))


def test_what_comes_after_an_embedding_may_work_in_place(draw):
    layer = LowRankEmbedding(factors(M, N, SPECTRA["generic"](R), draw))
    y = layer(torch.tensor([[0, 2], [3, 3]]))
    y += 1.0
    y.sum().backward()
    assert y._base is None and y.shape == (2, 2, N)


@pytest.mark.parametrize("batched", range(6))
def test_any_one_input_may_be_batched(batched):
    draw = torch.Generator().manual_seed(1)
    shapes = (5, 8), (7, 2), (2, 2), (8, 2), (7, 8), (7,)
    inputs = [torch.randn(shape, dtype=torch.float64, generator=draw) for shape in shapes]
    several = torch.stack([inputs[batched], 2 * inputs[batched]])
    dims = tuple(0 if i == batched else None for i in range(6))
    together = vmap(low_rank_product, dims)(*(*inputs[:batched], several, *inputs[batched + 1 :]))
    for y, own in zip(together, several, strict=True):
        alone = low_rank_product(*(*inputs[:batched], own, *inputs[batched + 1 :]))
        torch.testing.assert_close(y, alone)


def test_an_input_of_another_type_meets_a_bias():
    layer = LowRankLinear(truncated_svd(torch.randn(6, 8), 2), bias=torch.randn(6))
    x = torch.randn(3, 8)
    y = layer(x.double())
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, layer(x).double(), rtol=1e-5, atol=1e-5)
    y.sum().backward()
    assert layer.bias.grad.dtype == torch.float32


def test_a_replica_of_data_parallel_has_tensors_for_parameters():
    layer = LowRankLinear(truncated_svd(torch.randn(6, 8), 2))
    replica = layer._replicate_for_data_parallel()
    for name in "USV":
        setattr(replica, name, getattr(layer, name).clone())
    x = torch.randn(3, 8)
    replica(x).square().sum().backward()
    assert layer.S.grad.shape == (2, 2)
    torch.testing.assert_close(replica(x), layer(x))
