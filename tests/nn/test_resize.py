"""Changing the rank of a live layer: what survives, and what an older graph still gives."""

import copy
import gc

import pytest
import torch
from torch import nn

from cases import SPECTRA, close, factors, normal
from rankwise.nn import LowRankLinear
from rankwise.nn.resize import set_factor_

M, N = 7, 5
SEQUENCES = [(3, 1), (1, 5), (3, 5, 2)]


def of_rank(r, draw):
    return factors(M, N, SPECTRA["generic"](r), draw)


def make(r, draw) -> LowRankLinear:
    return LowRankLinear(of_rank(r, draw), base=nn.Linear(N, M).double(), scale=0.5)


def expected_gradients(layer, x, dy):
    """`dK, dL, dS` of `(layer(x) * dy).sum()` from the dense gradient."""
    f = layer.factors()
    G = layer.scale * dy.mT @ x
    return G @ f.V, G.mT @ f.U, f.U.mT @ G @ f.V


@pytest.mark.parametrize("ranks", SEQUENCES, ids=str)
def test_losses_that_outlive_a_resize_do_not_spoil_the_gradients_after_it(ranks, draw):
    layer = make(ranks[0], draw)
    x, dy = normal(4, N, draw=draw).requires_grad_(), normal(4, M, draw=draw)
    kept = []
    for rank in ranks:
        layer.set_factors_(of_rank(rank, draw))
        layer.zero_grad()
        x.grad = None
        kept += [(layer(x) * dy).sum() for _ in range(3)]
        kept[-2].backward()
        close(x.grad, dy @ (layer.base.weight + 0.5 * layer.factors().dense()))
        expected = expected_gradients(layer, x.detach(), dy)
        for got, right in zip(layer.gradient(), expected, strict=True):
            close(got, right)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("before, after", [(3, 1), (1, 5), (3, 5)])
def test_a_backward_pass_through_factors_that_are_gone_is_refused(before, after, autocast, draw):
    layer = make(before, draw)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = layer(normal(4, N, draw=draw)).square().sum()
    layer.set_factors_(of_rank(after, draw))
    with pytest.raises(RuntimeError, match=f"the rank changed from {before} to {after} between"):
        loss.backward()
    assert layer.gradient() == (None, None, None)


@pytest.mark.parametrize("ranks", SEQUENCES, ids=str)
def test_parameters_hooks_and_gradients_requirements_survive(ranks, draw):
    layer = make(ranks[0], draw)
    before = dict(layer.named_parameters())
    fired = []
    layer.U.register_hook(lambda g: fired.append("tensor"))
    layer.U.register_post_accumulate_grad_hook(lambda p: fired.append(tuple(p.grad.shape)))
    kept_losses = []
    for rank in ranks:
        layer.set_factors_(of_rank(rank, draw))
        layer.zero_grad()
        loss = layer(normal(4, N, draw=draw)).sum()
        kept_losses.append(loss)
        loss.backward()
        assert fired == ["tensor", (M, rank)]
        fired.clear()
    assert all(p is before[name] for name, p in layer.named_parameters())
    assert layer.U.requires_grad and layer.U.is_leaf


def test_a_gradient_of_the_old_shape_is_dropped_and_one_of_the_same_shape_kept(draw):
    layer = make(3, draw)
    layer(normal(4, N, draw=draw)).sum().backward()
    layer.set_factors_(of_rank(3, draw))
    assert layer.U.grad.shape == (M, 3)
    layer.set_factors_(of_rank(2, draw))
    assert layer.gradient() == (None, None, None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_type_and_contiguity_are_those_of_the_parameter(dtype):
    parameter = nn.Parameter(torch.zeros(4, 3, dtype=dtype))
    holder = nn.ParameterDict({"U": parameter})
    set_factor_(holder, "U", torch.ones(2, 4, dtype=torch.float32).mT)
    assert holder["U"] is parameter
    assert (parameter.dtype, tuple(parameter.shape)) == (dtype, (4, 2))
    assert parameter.is_contiguous()
    assert parameter.eq(1).all()


@pytest.mark.parametrize("shape", [(4, 3), (4, 2)])
def test_a_factor_is_a_copy_and_follows_no_graph(shape):
    parameter = nn.Parameter(torch.zeros(4, 3))
    value = torch.ones(shape, requires_grad=True)
    set_factor_(nn.ParameterDict({"U": parameter}), "U", value)
    with torch.no_grad():
        value.zero_()
    assert parameter.eq(1).all()
    assert parameter.is_leaf and parameter.requires_grad


def test_resizing_leaks_nothing(draw):
    layer = make(3, draw)
    x = normal(4, N, draw=draw)

    def cycle():
        for rank in (2, 4, 3):
            layer.set_factors_(of_rank(rank, draw))
            layer(x).sum().backward()
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    cycle()
    assert cycle() == cycle()


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("copied", [False, True])
def test_a_state_dict_of_another_rank_resizes_the_layer_that_loads_it(rank, copied, draw):
    source, layer = make(rank, draw), make(3, draw)
    original, layer = (layer, copy.deepcopy(layer)) if copied else (None, layer)
    identity = layer.U
    layer.load_state_dict(source.state_dict())
    x = normal(4, N, draw=draw)
    assert layer.rank == rank and layer.U is identity
    assert torch.equal(layer(x), source(x))
    layer(x).sum().backward()
    assert layer.U.grad.shape == (M, rank)
    if original is not None:
        assert original.rank == 3


def test_a_model_loads_ranks_by_name(draw):
    source = nn.ModuleDict({"a": make(1, draw), "b": make(4, draw)})
    model = nn.ModuleDict({"a": make(3, draw), "b": make(3, draw)})
    model.load_state_dict(source.state_dict())
    assert (model["a"].rank, model["b"].rank) == (1, 4)
    close(model["b"].factors().dense(), source["b"].factors().dense(), 0)


def test_a_state_of_another_shape_is_refused_and_the_layer_left_alone(draw):
    layer = make(3, draw)
    other = LowRankLinear(factors(5, 7, SPECTRA["generic"](2), draw))
    before = layer.factors().dense().clone()
    with pytest.raises(RuntimeError, match="size mismatch for U"):
        layer.load_state_dict(other.state_dict(), strict=False)
    assert torch.equal(layer.factors().dense(), before)


@pytest.mark.parametrize("letter", "USV")
def test_a_non_finite_state_is_refused(letter, draw):
    layer, state = make(3, draw), make(2, draw).state_dict()
    state[letter][0, 0] = float("nan")
    with pytest.raises(ValueError, match="must be finite"):
        layer.load_state_dict(state)
    assert layer.rank == 3
