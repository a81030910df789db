"""Adapters around embeddings and convolutions: base and product, merged and not."""

import pytest
import torch
from torch import nn

from cases import close, factors
from rankwise.nn import LowRankConv1d, LowRankConv2d, LowRankEmbedding
from rankwise.numerics.init import zero_core
from rankwise.robust import lipschitz_bound
from rankwise.surgery.adapter import adapter_for, map_kind, map_shape
from rankwise.surgery.merge import merge_, unmerge_
from rankwise.surgery.shrink import densify_, shrink

SIGMA = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
LAYERS = {
    "embedding": (nn.Embedding(9, 5, padding_idx=2), (9, 5), torch.tensor([[0, 2], [8, 2]])),
    "conv1d": (nn.Conv1d(2, 5, 3, stride=2, padding=1), (5, 6), torch.randn(2, 2, 7)),
    "conv2d": (
        nn.Conv2d(2, 5, (3, 2), padding=(1, 0), dilation=2),
        (5, 12),
        torch.randn(2, 2, 7, 6),
    ),
    "same": (nn.Conv2d(2, 5, 3, padding="same", bias=False), (5, 18), torch.randn(2, 7, 6)),
}


@pytest.fixture(params=LAYERS)
def case(request, draw):
    base, shape, x = LAYERS[request.param]
    base = base.double()
    x = x.double() if x.is_floating_point() else x
    return adapter_for(base, factors(*shape, SIGMA, draw), -0.3), base, x


def test_an_adapter_adds_its_product_to_the_weight(case):
    layer, base, x = case
    assert map_kind(base) == map_kind(layer) and map_shape(base) == layer.shape
    W0 = base.weight.detach().clone()
    y, model = layer(x), nn.Sequential(layer)
    merge_(model)
    close(base.weight, W0 - 0.3 * layer.factors().dense().reshape(W0.shape), 1e-14)
    close(model(x), y, 1e-13)
    unmerge_(model)
    assert torch.equal(base.weight, W0) and torch.equal(layer(x), y)
    assert layer.weight is base.weight
    assert "scale=-0.3" in repr(layer)


def test_an_adapter_has_no_plain_form_of_its_own(case):
    layer, _, _ = case
    for form in (layer.dense_layer, layer.thin_layers):
        with pytest.raises(ValueError, match="`merge_.model, final=True.` puts it in there"):
            form()


def test_a_scale_without_a_base_is_part_of_the_weight(draw):
    for layer, x in (
        (
            LowRankConv2d(factors(5, 18, SIGMA, draw), 3, bias=torch.ones(5).double(), scale=0.4),
            (2, 2, 6, 5),
        ),
        (LowRankConv1d(factors(5, 6, SIGMA, draw), 3, scale=-2.0), (2, 2, 6)),
        (LowRankEmbedding(factors(7, 5, SIGMA, draw), scale=3.0), None),
    ):
        inputs = torch.arange(7) if x is None else torch.randn(x, dtype=torch.float64)
        dense = nn.Sequential(layer)
        y, thin = layer(inputs), shrink(dense)
        densify_(dense)
        close(dense(inputs), y)
        close(thin(inputs), y)


def test_the_bound_of_an_adapted_convolution_is_that_of_the_merged_one(draw):
    layer = adapter_for(nn.Conv2d(2, 5, 3).double(), factors(5, 18, SIGMA, draw), 0.7)
    model, x = nn.Sequential(layer, nn.ReLU()), torch.zeros(1, 2, 6, 6).double()
    bound = lipschitz_bound(model, x)
    merge_(model)
    assert abs(lipschitz_bound(model, x) - bound) < 1e-9 * bound
    merge_(model, final=True)
    assert abs(lipschitz_bound(model, x) - bound) < 1e-9 * bound


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: setattr(layer, "forward", lambda x: torch.ones(2, 5)),
        lambda layer: layer.register_forward_hook(lambda *_: torch.ones(2, 5)),
    ],
    ids=["forward", "hook"],
)
def test_what_a_base_does_in_place_of_its_class_is_done(change):
    base = nn.Linear(3, 5)
    change(base)
    layer = adapter_for(base, zero_core(5, 3, 2, generator=None, like=torch.empty(0)), 1.0)
    assert torch.equal(layer(torch.randn(2, 3)), torch.ones(2, 5))


def test_a_backward_hook_of_a_base_is_called():
    seen, base = [], nn.Linear(3, 5)
    base.register_full_backward_hook(lambda *_: seen.append(True))
    layer = adapter_for(base, zero_core(5, 3, 2, generator=None, like=torch.empty(0)), 1.0)
    layer(torch.randn(2, 3, requires_grad=True)).sum().backward()
    assert seen


class Bytes(nn.Module):
    """A table in eighths."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.arange(-20, 25, dtype=torch.int8).reshape(9, 5)
        self.weight = nn.Parameter(table, requires_grad=False)

    def forward(self, index):
        return self.weight[index].float() / 8


def test_an_embedding_of_integers_is_added_to_in_its_outputs_type(draw):
    f = factors(9, 5, SIGMA, draw)
    f = type(f)(*(t.float() for t in f))
    layer, index = LowRankEmbedding(f, base=Bytes(), scale=0.1), torch.arange(9)
    close(layer(index) - layer.base(index), 0.1 * f.dense(), 1e-5)
