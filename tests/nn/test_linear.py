"""Making a layer: what fits together, and what is said of what does not."""

import pytest
import torch
from torch import nn

from cases import SPECTRA, factors, normal
from rankwise.nn import LowRankLinear
from rankwise.nn.base import is_linear, linear_shape

Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D

M, N, R = 7, 5, 3


@pytest.fixture
def f(draw):
    return factors(M, N, SPECTRA["generic"](R), draw)


def test_a_layer_holds_copies_of_its_factors(f):
    layer = LowRankLinear(f)
    f.U.zero_()
    assert layer.U.any()
    assert sorted(name for name, _ in layer.named_parameters()) == ["S", "U", "V"]
    assert (layer.out_features, layer.in_features, layer.rank) == (M, N, R)


def test_factors_share_memory_with_the_parameters(f):
    layer = LowRankLinear(f)
    layer.factors().S.mul_(2)
    assert torch.equal(layer.S, 2 * f.S)
    assert not layer.factors().S.requires_grad


@pytest.mark.parametrize("base", [nn.Linear(M, N), Conv1D(N, M), nn.Linear(N, M + 1)])
def test_factors_of_another_shape_than_the_base_are_refused(base, f):
    with pytest.raises(ValueError, match=r"factors` of shape \(7, 5\) do not fit the base"):
        LowRankLinear(f, base=base)


def test_a_base_that_is_no_linear_map_is_refused(f):
    with pytest.raises(TypeError, match="Conv2d is not a linear map that rankwise knows"):
        LowRankLinear(f, base=nn.Conv2d(N, M, 1))


def test_a_bias_beside_a_base_is_refused(f):
    with pytest.raises(ValueError, match="`bias` belongs to a layer without a base"):
        LowRankLinear(f, base=nn.Linear(N, M), bias=torch.zeros(M))


@pytest.mark.parametrize("shape", [(M + 1,), (1,), (1, M)])
def test_a_bias_of_the_wrong_shape_is_refused(shape, f):
    with pytest.raises(ValueError, match=r"`bias` must have shape \(7,\)"):
        LowRankLinear(f, bias=torch.zeros(shape))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0])
def test_a_scale_that_cannot_be_trained_with_is_refused(scale, f):
    with pytest.raises(ValueError, match="`scale` must be finite and not 0"):
        LowRankLinear(f, scale=scale)


@pytest.mark.parametrize("letter", "USV")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_factors_are_refused(letter, bad, f):
    getattr(f, letter)[0, 0] = bad
    with pytest.raises(ValueError, match="must be finite"):
        LowRankLinear(f)


@pytest.mark.parametrize("base", [None, nn.Linear(N, M).double()])
def test_an_input_of_the_wrong_width_is_an_error(base, f, draw):
    layer = LowRankLinear(f, base=base)
    with pytest.raises(RuntimeError, match="cannot be multiplied|must match"):
        layer(normal(4, N + 1, draw=draw))


def test_a_layer_answers_for_the_weight_of_its_base_and_has_none_without(f):
    base = nn.Linear(N, M).double()
    assert LowRankLinear(f, base=base).weight is base.weight
    assert not hasattr(LowRankLinear(f), "weight")


def test_parameters_are_contiguous_as_files_and_sharding_need_them(f):
    assert not f.U.is_contiguous()
    assert all(p.is_contiguous() for p in LowRankLinear(f).parameters())


def test_its_text_tells_rank_and_scale(f):
    layer = LowRankLinear(f, base=nn.Linear(N, M).double(), scale=2)
    assert "in_features=5, out_features=7, rank=3, scale=2" in repr(layer)


def test_modules_are_known_as_linear_by_what_they_have():
    assert linear_shape(nn.Linear(3, 4)) == (4, 3)
    assert linear_shape(Conv1D(4, 3)) == (4, 3)
    assert not is_linear(nn.Conv1d(3, 4, 1))
    assert not is_linear(nn.Embedding(3, 4))
    with pytest.raises(TypeError, match="Embedding is not a linear map"):
        linear_shape(nn.Embedding(3, 4))
