"""Adapters beside frozen weights that other libraries have quantised."""

import copy
import logging
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.nn.base import is_plain
from rankwise.recipes.int8 import Int8Linear
from rankwise.surgery.count import count_parameters

M, N, RANK = 48, 64, 4


def model_of(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(N, M, bias=bias), nn.GELU(), nn.Linear(M, N, bias=bias))


def bitsandbytes(bits: int) -> Callable[[nn.Sequential], None]:
    def quantise_(model: nn.Sequential) -> None:
        bnb = pytest.importorskip("bitsandbytes", reason="needs `pip install bitsandbytes`")
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        for i in (0, 2):
            shape, bias = (model[i].in_features, model[i].out_features), model[i].bias is not None
            if bits == 4:
                new = bnb.nn.Linear4bit(*shape, bias, quant_type="nf4", compute_dtype=torch.float32)
            else:
                new = bnb.nn.Linear8bitLt(*shape, bias, has_fp16_weights=False, threshold=0.0)
            new.load_state_dict(model[i].state_dict())
            model[i] = new.to("cpu")

    return quantise_


def torchao(config: str, **options) -> Callable[[nn.Sequential], None]:
    def quantise_(model: nn.Sequential) -> None:
        quantization = pytest.importorskip("torchao.quantization", reason="needs torchao")
        quantization.quantize_(model, getattr(quantization, config)(**options))

    return quantise_


def int8(model: nn.Sequential) -> None:
    for i in (0, 2):
        model[i] = Int8Linear(model[i])


QUANTISED = {
    "int8 of the recipes": int8,
    "bitsandbytes 8 bit": bitsandbytes(8),
    "bitsandbytes 4 bit": bitsandbytes(4),
    "torchao int8": torchao("Int8WeightOnlyConfig"),
    "torchao int4 in int8": torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4),
}


@pytest.fixture(params=QUANTISED)
def quantised(request) -> nn.Sequential:
    model = model_of()
    QUANTISED[request.param](model)
    return model


def dense_weight(layer: nn.Module) -> Tensor:
    """What a layer multiplies by, seen from outside: its images of the unit vectors."""
    with torch.no_grad():
        images = layer(torch.eye(layer.in_features))
        return (images - (0 if layer.bias is None else layer.bias)).T


def dense_twin(model: nn.Sequential) -> nn.Sequential:
    twin = model_of()
    for i in (0, 2):
        with torch.no_grad():
            twin[i].weight.copy_(dense_weight(model[i]))
            twin[i].bias.copy_(model[i].bias)
    return twin


def fill_cores_(model: nn.Module) -> None:
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, rw.LowRankLinear):
            with torch.no_grad():
                module.S.copy_(torch.randn(module.rank, module.rank))


def test_outputs_and_all_gradients_are_those_of_the_dequantised_model(quantised, draw):
    twin = dense_twin(quantised)
    x = torch.randn(7, N, generator=draw)
    results = []
    for model in (quantised, twin):
        rw.adapt_(model, rank=RANK, scale=0.7)
        fill_cores_(model)
        inputs = x.clone().requires_grad_()
        y = model(inputs)
        y.square().sum().backward()
        results.append([y, inputs.grad, *(p.grad for p in model.parameters() if p.requires_grad)])
    assert len(results[0]) == 8
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_weights_stay_quantised_and_factors_float32_while_training(quantised, draw):
    before = [copy.deepcopy(quantised[i].state_dict()) for i in (0, 2)]
    rw.adapt_(quantised, rank=RANK)
    optimizer = rw.Optimizer(quantised, lr=0.1)
    x, y = torch.randn(64, N, generator=draw), torch.randn(64, N, generator=draw)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(quantised(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.99 * losses[0]
    for i, state in zip((0, 2), before, strict=True):
        assert {p.dtype for p in quantised[i].factor_parameters()} == {torch.float32}
        assert not is_plain(quantised[i].base.weight)
        after = quantised[i].base.state_dict()
        assert after.keys() == state.keys()
        assert all(torch.equal(held(after[name]), held(state[name])) for name in state)


def held(value):
    """A tensor, or what a tensor of another type computes with."""
    if not isinstance(value, Tensor):
        return torch.tensor(value)
    return value.dequantize() if hasattr(value, "__tensor_flatten__") else value


def test_a_plan_counts_the_matrix_and_not_its_packing(quantised):
    plan = rw.plan(quantised, rank=RANK)
    assert [layer.shape for layer in plan.adapted] == [(M, N), (N, M)]
    assert {layer.note for layer in plan.adapted} == {"its weight stays quantised"}
    assert plan.total == sum(p.numel() for p in model_of().parameters())
    assert count_parameters(quantised).total == plan.total


def test_merging_is_refused_and_nothing_changes(quantised, draw):
    rw.adapt_(quantised, rank=RANK)
    fill_cores_(quantised)
    x = torch.randn(3, N, generator=draw)
    before = quantised(x)
    with pytest.raises(ValueError, match="to which nothing can be added. Load the model unquant"):
        rw.merge_(quantised)
    assert torch.equal(quantised(x), before)


def test_a_saved_adapter_serves_the_quantised_and_the_plain_model(quantised, tmp_path, draw):
    fresh, plain = copy.deepcopy(quantised), dense_twin(quantised)
    rw.adapt_(quantised, rank=RANK)
    fill_cores_(quantised)
    rw.save(quantised, tmp_path)
    x = torch.randn(5, N, generator=draw)
    rw.load(fresh, tmp_path)
    assert torch.equal(fresh(x), quantised(x))
    rw.load(plain, tmp_path)
    torch.testing.assert_close(plain(x), quantised(x), atol=1e-5, rtol=1e-5)
    rw.merge_(plain, final=True)
    torch.testing.assert_close(plain(x), quantised(x), atol=1e-5, rtol=1e-5)


def test_the_lora_export_is_that_of_the_plain_model(quantised, tmp_path):
    from safetensors.torch import load_file

    plain = dense_twin(quantised)
    for name, model in (("quantised", quantised), ("plain", plain)):
        rw.adapt_(model, rank=RANK)
        fill_cores_(model)
        rw.export_lora(model, tmp_path / name)
    one, other = (
        load_file(tmp_path / n / "adapter_model.safetensors") for n in ("quantised", "plain")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_quantised_weight_cannot_be_factorised_or_trained(quantised):
    with pytest.raises(ValueError, match="no layer"):
        rw.factorize_(quantised, rank=RANK)
    if not quantised[0].weight.is_floating_point():
        with pytest.raises(ValueError, match="'2.weight' is quantised and cannot train"):
            rw.adapt_(quantised, rank=RANK, exclude="2", train="2.weight")
    assert not any(isinstance(m, rw.LowRankLinear) for m in quantised.modules())


class Packed(nn.Module):
    """Two numbers of four bits in a byte, as several libraries hold them."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.step = float(weight.abs().max() / 7)
        levels = (weight / self.step).round().to(torch.int64) + 8
        packed = (levels[:, ::2] * 16 + levels[:, 1::2]).to(torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.stack([self.weight // 16, self.weight % 16], dim=-1).flatten(1)
        return nn.functional.linear(x, (pairs.to(x.dtype) - 8) * self.step)


def test_a_packed_layer_of_no_known_library_is_adapted_by_what_it_has(draw):
    weight = torch.randn(M, N, generator=draw)
    model = nn.Sequential(Packed(weight))
    assert rw.plan(model).total == math.prod(weight.shape)
    x = torch.randn(5, N, generator=draw)
    before = model(x)
    rw.adapt_(model, rank=RANK)
    assert torch.equal(model(x), before)
    fill_cores_(model)
    layer = model[0]
    torch.testing.assert_close(model(x) - before, x @ layer.factors().dense().T)
