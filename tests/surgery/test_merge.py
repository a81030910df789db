"""Merging adapters into the weights, and back."""

import copy

import pytest
import torch
from torch import nn

from rankwise.nn import LowRankLinear
from rankwise.surgery.adapt import adapt_
from rankwise.surgery.layers import factored_layers
from rankwise.surgery.merge import merge_, unmerge_


def trained(dtype: torch.dtype = torch.float64, scale: float = 0.5) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, dtype=dtype), nn.Tanh(), nn.Linear(5, 3, dtype=dtype))
    adapt_(model, rank=2, scale=scale)
    fill_cores_(model)
    return model


def fill_cores_(model: nn.Module) -> None:
    draw = torch.Generator().manual_seed(1)
    for layer in factored_layers(model).values():
        core = torch.randn(layer.S.shape, generator=draw, dtype=torch.float64)
        with torch.no_grad():
            layer.S.copy_(core)


X = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(4, 6)


def test_a_merged_model_computes_the_same_in_its_base_layers():
    model = trained()
    expected = model(X)
    merge_(model)
    assert all(layer.merged for layer in factored_layers(model).values())
    assert torch.allclose(model(X), expected, rtol=0, atol=1e-14)
    assert torch.equal(model[0](X), model[0].base(X))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_unmerging_restores_every_bit(dtype):
    model = trained(dtype)
    before = copy.deepcopy(model.state_dict())
    merge_(model)
    assert not torch.equal(before["0.base.weight"], model.state_dict()["0.base.weight"])
    unmerge_(model)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(layer.merged for layer in factored_layers(model).values())


def test_a_low_precision_weight_is_rounded_once():
    model = trained(torch.bfloat16)
    layer = model[0]
    exact = layer.base.weight.float() + 0.5 * layer.factors().dense()
    merge_(model)
    assert torch.equal(layer.base.weight, exact.to(torch.bfloat16))


def test_final_leaves_no_trace():
    model = trained()
    expected = model(X)
    keys = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).state_dict().keys()
    merge_(model, final=True)
    assert [type(module) for module in model] == [nn.Linear, nn.Tanh, nn.Linear]
    assert model.state_dict().keys() == keys
    assert torch.allclose(model(X), expected, rtol=0, atol=1e-14)


def test_final_after_a_merge_adds_nothing_twice():
    model = trained()
    expected = model(X)
    merge_(model)
    merge_(model, final=True)
    assert not factored_layers(model)
    assert torch.allclose(model(X), expected, rtol=0, atol=1e-14)


def test_a_module_used_twice_is_merged_once():
    linear = nn.Linear(4, 4, dtype=torch.float64)
    model = nn.Sequential(linear, nn.Tanh(), linear)
    adapt_(model, rank=2)
    fill_cores_(model)
    x = X[:, :4]
    expected = model(x)
    merge_(model, final=True)
    assert model[0] is model[2] is linear
    assert torch.allclose(model(x), expected, rtol=0, atol=1e-14)


def test_merging_twice_and_unmerging_unmerged_are_errors():
    model = trained()
    with pytest.raises(ValueError, match=r"not merged: 0, 2"):
        unmerge_(model)
    merge_(model)
    with pytest.raises(ValueError, match="merged already"):
        merge_(model)


def test_a_model_without_adapters_is_an_error():
    with pytest.raises(ValueError, match="no adapted layer"):
        merge_(nn.Sequential(nn.Linear(2, 2)))


class QuantisedLinear(nn.Linear):
    """Stands for a layer whose weight cannot be added to."""


def test_a_base_that_is_not_plain_is_refused_and_nothing_changes():
    model = nn.Sequential(nn.Linear(4, 4), QuantisedLinear(4, 4))
    adapt_(model, rank=2)
    fill_cores_(model)
    before = model[0].base.weight.clone()
    with pytest.raises(ValueError, match="layer '1' has a base of type QuantisedLinear"):
        merge_(model)
    assert torch.equal(model[0].base.weight, before)
    assert not model[0].merged


def test_a_tied_weight_is_untied_by_merging_and_tied_again_by_unmerging():
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    model["head"].weight = model["embed"].weight
    adapt_(model, rank=2)
    fill_cores_(model)
    before = model["embed"].weight.clone()
    merge_(model)
    assert torch.equal(model["embed"].weight, before)
    assert not torch.equal(model["head"].base.weight, before)
    unmerge_(model)
    assert model["head"].base.weight is model["embed"].weight


@pytest.mark.parametrize("merged_before", [False, True])
def test_ending_with_an_untied_weight_warns(merged_before):
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    model["head"].weight = model["embed"].weight
    adapt_(model, rank=2)
    if merged_before:
        merge_(model)
    with pytest.warns(UserWarning, match="'head' was tied to one of Embedding"):
        merge_(model, final=True)


def test_a_merged_model_can_be_copied_and_cast_and_unmerged():
    model = trained(torch.float32)
    before = model[0].base.weight.clone()
    merge_(model)
    twin = copy.deepcopy(model).double()
    unmerge_(twin)
    assert torch.equal(twin[0].base.weight, before.double())
    assert model[0].merged


def test_the_transposed_weight_of_conv1d_is_merged_transposed():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    model = nn.Sequential(conv1d(5, 6), conv1d(5, 5)).double()
    adapt_(model, rank=2, scale=2.0)
    fill_cores_(model)
    before = [m.base.weight.clone() for m in model]
    expected = model(X)
    merge_(model)
    assert torch.allclose(model(X), expected, rtol=0, atol=1e-13)
    unmerge_(model)
    assert all(torch.equal(m.base.weight, w) for m, w in zip(model, before, strict=True))


def test_factors_survive_a_merge():
    model = trained()
    before = [layer.factors().dense() for layer in factored_layers(model).values()]
    merge_(model)
    unmerge_(model)
    after = [layer.factors().dense() for layer in factored_layers(model).values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert isinstance(model[0], LowRankLinear)
