"""Adapting a model in place."""

import copy
import random

import pytest
import torch
from torch import nn

from rankwise.nn import LowRankLinear
from rankwise.numerics.factors import orthonormality_defect
from rankwise.surgery.adapt import adapt_
from rankwise.surgery.count import count_parameters
from rankwise.surgery.layers import factored_layers


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6, dtype=dtype)
        self.body = nn.ModuleList([nn.Linear(6, 6, dtype=dtype) for _ in range(3)])
        self.norm = nn.LayerNorm(6, dtype=dtype)
        self.head = nn.Linear(6, 2, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        for layer in self.body:
            h = torch.tanh(layer(h))
        return self.head(self.norm(h))


TOKENS = torch.arange(10)


def test_adapting_does_not_change_the_function():
    model = Net(torch.float64)
    before = model(TOKENS)
    adapt_(model, rank=3)
    assert torch.equal(model(TOKENS), before)


def test_only_factors_and_what_is_named_train():
    model = Net()
    planned = adapt_(model, rank=2, select="body.*", train=["head", "norm.weight"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    factors = {f"body.{i}.{letter}" for i in range(3) for letter in "USV"}
    assert trained == factors | {"head.weight", "head.bias", "norm.weight"}
    assert [p.name for p in planned.dense] == ["norm.weight", "head.weight", "head.bias"]


def test_train_takes_types_and_predicates_over_modules():
    model = Net()
    adapt_(model, select="body.0", train=nn.LayerNorm)
    assert model.norm.weight.requires_grad and not model.head.weight.requires_grad
    model = Net()
    adapt_(model, select="body.0", train=lambda name, module: name == "head")
    assert model.head.weight.requires_grad and not model.norm.weight.requires_grad


def test_weights_of_adapted_layers_stay_frozen_even_if_a_container_trains():
    model = Net()
    adapt_(model, select="body.0", train="body")
    assert not model.body[0].base.weight.requires_grad
    assert model.body[1].weight.requires_grad


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("haed", r"`train`: 'haed' matches no parameter .* Did you mean 'head'"),
        ("body.0", "`train`: 'body.0' matches no parameter outside the adapted layers"),
        (nn.Conv2d, "`train`: Conv2d matches no parameter"),
    ],
)
def test_what_trains_must_exist(train, message):
    model = Net()
    with pytest.raises(ValueError, match=message):
        adapt_(model, select="body.*", train=train)
    assert not factored_layers(model)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_factors_are_at_least_float32_whatever_the_base(dtype, expected):
    model = Net(dtype)
    adapt_(model, rank=2, select="body.*")
    layer = model.body[0]
    assert {p.dtype for p in (layer.U, layer.S, layer.V)} == {expected}
    assert layer.base.weight.dtype == dtype
    assert orthonormality_defect(layer.factors().U) < 1e-6


def test_the_start_depends_on_seed_and_name_only():
    def start(seed: int = 0, **options) -> torch.Tensor:
        model = Net()
        adapt_(model, rank=2, seed=seed, **options)
        return model.body[1].U.detach()

    torch.manual_seed(1)
    first = start()
    torch.manual_seed(2)
    assert torch.equal(start(), first)
    assert torch.equal(start(select="body.1"), first)
    assert not torch.equal(start(seed=1), first)
    model = Net()
    adapt_(model, rank=2)
    assert not torch.equal(model.body[0].U, model.body[1].U)


def test_the_global_random_state_is_not_touched():
    model = Net()
    states = torch.get_rng_state(), random.getstate()
    adapt_(model)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()


def test_a_module_used_twice_is_adapted_once_everywhere():
    linear = nn.Linear(4, 4, dtype=torch.float64)
    model = nn.Sequential(linear, nn.Tanh(), linear, nn.Sequential(linear))
    x = torch.randn(3, 4, dtype=torch.float64)
    before = model(x)
    adapt_(model, rank=2)
    assert model[0] is model[2] is model[3][0]
    assert isinstance(model[0], LowRankLinear)
    assert torch.equal(model(x), before)
    assert count_parameters(model).factors == 2 * (4 + 4 + 2)


def test_thin_layers_with_one_weight_get_adapters_of_their_own():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    adapt_(model, rank=2)
    assert model[0].base.weight is model[1].base.weight
    assert model[0].U is not model[1].U


def test_a_tied_head_is_adapted_and_the_tie_stays():
    model = Net()
    model.head = nn.Linear(6, 10, bias=False)
    model.head.weight = model.embed.weight
    adapt_(model, rank=2, select="head")
    assert model.head.base.weight is model.embed.weight
    assert not model.embed.weight.requires_grad


def test_the_tied_weight_of_an_adapted_layer_cannot_train():
    model = Net()
    model.head = nn.Linear(6, 10, bias=False)
    model.head.weight = model.embed.weight
    with pytest.raises(ValueError, match="'embed.weight' is also the weight of an adapted layer"):
        adapt_(model, select="head", train="embed")
    assert not factored_layers(model)


def test_the_mode_of_a_layer_is_kept():
    model = Net().eval()
    adapt_(model)
    assert not any(module.training for module in model.modules())


def test_a_linear_layer_made_of_parts_is_adapted_as_one():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)), nn.Linear(4, 2))
    x = torch.randn(3, 5)
    before = model(x)
    planned = adapt_(model, rank=2)
    assert [layer.name for layer in planned.layers] == ["0", "1"]
    assert torch.equal(model(x), before)


def test_scale_is_handed_on():
    model = Net()
    adapt_(model, scale=0.5)
    assert {layer.scale for layer in factored_layers(model).values()} == {0.5}


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_a_scale_without_use_is_refused(scale):
    with pytest.raises(ValueError, match="`scale` must be finite and not 0"):
        adapt_(Net(), scale=scale)


def test_an_adapted_model_is_refused_with_the_way_out():
    model = Net()
    adapt_(model, select="body.0")
    kept = copy.deepcopy(model.state_dict())
    message = r"layers already: body\.0.*merge_\(model, final=True\)"
    with pytest.raises(ValueError, match=message):
        adapt_(model, select="head")
    assert all(torch.equal(kept[key], value) for key, value in model.state_dict().items())


def test_a_bare_layer_is_refused():
    with pytest.raises(ValueError, match="a bare Linear cannot be replaced in place. Wrap it"):
        adapt_(nn.Linear(3, 3))


def test_nothing_left_to_adapt_is_an_error_with_the_reasons():
    with pytest.raises(ValueError, match="no layer is left to adapt.*min_features=99"):
        adapt_(Net(), select="head", min_features=99)
    with pytest.raises(ValueError, match="no layer is left to adapt.*Conv2d is not a linear map"):
        adapt_(nn.Sequential(nn.Conv2d(1, 1, 3)))
    with pytest.raises(ValueError, match="no layer is left to adapt"):
        adapt_(nn.Sequential(nn.ReLU()))


def test_weights_on_the_meta_device_are_refused():
    with torch.device("meta"):
        model = Net()
    with pytest.raises(ValueError, match="meta device"):
        adapt_(model)
