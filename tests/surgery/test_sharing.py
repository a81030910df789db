"""Modules used twice, frozen parts and hooks: what is shared, frozen or in use stays so."""

import pytest
import torch
from torch import nn

import rankwise as rw
from cases import close
from rankwise.compress import calibrate, sampled_cross_entropy
from rankwise.nn.attention import SplitAttention


class Block(nn.Module):
    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return x + self.attention(x, x, x, need_weights=False)[0]


def shared() -> nn.Sequential:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    return nn.Sequential(Block(attention), Block(attention)).double()


def test_an_attention_used_twice_stays_one(draw):
    model, x = shared(), torch.randn(2, 5, 8, generator=draw, dtype=torch.float64)
    total = sum(p.numel() for p in model.parameters())
    plan = rw.factorize_(model, rank=2)
    assert plan.total == total and plan.kept == total - 4 * 64 + 4 * 2 * 16
    assert model[0].attention is model[1].attention
    assert isinstance(model[0].attention, SplitAttention)
    y = model(x).detach()
    rw.densify_(model)
    assert model[0].attention is model[1].attention
    assert isinstance(model[0].attention, nn.MultiheadAttention)
    close(model(x).detach(), y)


def test_a_block_used_many_times_is_planned_and_calibrated_once(draw):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.Sequential(*[layer] * 3, nn.Flatten(), nn.Linear(40, 3))
    x = torch.randn(8, 5, 8, generator=draw)
    found = calibrate(model, [x], lambda m, x: sampled_cross_entropy(m(x)))
    assert {name.split(".")[0] for name in found.layers} == {"0", "4"}
    # Three uses of eight rows of five places.
    assert found.places["0.linear1"] == 3 * 8 * 5
    plan = rw.plan_factorize(model, rank=2)
    assert [p.name for p in plan.factorized] == list(found.layers)


def test_a_frozen_attention_stays_frozen_and_a_trained_one_trained(draw):
    for trains in (False, True):
        model = shared().requires_grad_(trains)
        rw.factorize_(model, rank=2, select="q_proj")
        assert {p.requires_grad for p in model.parameters()} == {trains}
        rw.densify_(model)
        assert {p.requires_grad for p in model.parameters()} == {trains}


def test_tied_weights_share_no_biases_and_frozen_weights_freeze_none():
    a, b = nn.Linear(12, 12), nn.Linear(12, 12)
    b.weight = a.weight
    nn.init.zeros_(a.bias)
    nn.init.zeros_(b.bias)
    model = nn.Sequential(a, b)
    a.weight.requires_grad_(False)
    rw.factorize_(model, rank=2)
    small = rw.shrink(model)
    assert small[0][1].weight is small[1][1].weight
    assert small[0][1].bias is not small[1][1].bias
    assert small[0][1].bias.requires_grad and not small[0][1].weight.requires_grad
    rw.densify_(model)
    assert model[0].weight is model[1].weight and model[0].bias is not model[1].bias


def test_hooks_and_forwards_of_their_own_keep_a_layer_dense():
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12))
    model[0].register_full_backward_hook(lambda *_: None)
    model[1].forward = model[1].forward
    assert list(rw.plan_factorize(model, rank=2).ranks) == ["2"]


def test_masks_reach_an_encoder_that_is_watched(draw):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            mask = torch.arange(5) >= torch.tensor([[5], [3]])
            return self.head(self.encoder(x, src_key_padding_mask=mask).mean(1))

    model, x = Masked().eval(), torch.randn(2, 5, 8, generator=draw)
    nested = model.encoder.use_nested_tensor
    rw.plan_factorize(model, rank=2, example=x)
    found = calibrate(model, [x], lambda m, x: sampled_cross_entropy(m(x)))
    assert model.encoder.use_nested_tensor == nested
    assert len(found.layers) == 13


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_copies_of_a_low_rank_model_shrink(dtype, draw):
    model = nn.Sequential(nn.Linear(12, 12))
    rw.factorize_(model, rank=2)
    x = torch.randn(3, 12, generator=draw)
    y = model(x).detach()
    small = rw.shrink(model.to(dtype))
    assert small[0][0].weight.dtype == dtype
    torch.testing.assert_close(small(x.to(dtype)).float(), y, rtol=0.05, atol=0.05)
