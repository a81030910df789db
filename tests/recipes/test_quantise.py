"""Frozen layers in eight and four bits: how small they are, and that they stay what they are."""

import pytest
import torch
from torch import nn

from language_models import llama
from rankwise.recipes.int8 import Int8Linear
from rankwise.recipes.memory import model_bytes
from rankwise.recipes.quantise import WAYS, quantise_


@pytest.fixture(autouse=True)
def library() -> None:
    pytest.importorskip("bitsandbytes", reason="needs `pip install bitsandbytes`")


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512, bias=False)).requires_grad_(False)


@pytest.mark.parametrize("bits, share, error", [("8bit", 0.26, 0.01), ("4bit", 0.14, 0.15)])
def test_it_takes_a_part_of_the_memory_and_computes_nearly_the_same(bits, share, error, draw):
    plain, packed = model(), model()
    assert quantise_(packed, ["0", "1"], bits, "cpu")
    assert model_bytes(packed) < share * model_bytes(plain)
    x = torch.randn(8, 512, generator=draw)
    assert 0 < (packed(x) - plain(x)).norm() < error * plain(x).norm()


@pytest.mark.parametrize("bits", WAYS)
def test_measuring_between_steps_leaves_every_bit_as_it_is(bits, draw):
    packed = model()
    quantise_(packed, ["0", "1"], bits, "cpu")
    x = torch.randn(8, 512, generator=draw)
    size, before = model_bytes(packed), packed.train()(x)
    with torch.no_grad():
        assert torch.equal(packed.eval()(x), before)
    assert torch.equal(packed.train()(x), before)
    assert model_bytes(packed) == size


def test_int8_has_the_gradient_of_the_weight_that_it_stands_for(draw):
    packed = Int8Linear(nn.Linear(64, 48))
    W = packed.weight * packed.scale
    x = torch.randn(7, 64, generator=draw, requires_grad=True)
    dy = torch.randn(7, 48, generator=draw)
    y = packed(x)
    y.backward(dy)
    torch.testing.assert_close(y, nn.functional.linear(x, W, packed.bias))
    torch.testing.assert_close(x.grad, dy @ W)
    with torch.autocast("cpu", torch.bfloat16):
        assert packed(x).dtype == torch.bfloat16


@pytest.mark.parametrize("bits", WAYS)
def test_no_weight_waits_for_the_backward_pass_in_floating_point(bits):
    packed = model()
    quantise_(packed, ["0", "1"], bits, "cpu")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        packed(torch.randn(4, 512, requires_grad=True))
    assert not [t for t in kept if t.is_floating_point() and t.numel() >= 512 * 512]


def test_layers_of_another_kind_are_refused_by_name():
    with pytest.raises(ValueError, match="--quantize 4bit knows torch.nn.Linear, and layer '0'"):
        quantise_(nn.Sequential(nn.Bilinear(2, 2, 2)), ["0"], "4bit", "cpu")


def test_tied_weights_count_once():
    tied = llama()
    size = model_bytes(tied)
    tied.lm_head.weight = tied.model.embed_tokens.weight
    assert size - model_bytes(tied) == 4 * tied.lm_head.weight.numel()
