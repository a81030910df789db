"""The low-rank convolution against its dense twin, and where the optimizer meets its rows."""

import pytest
import torch
from torch.nn.functional import conv2d

from cases import SPECTRA, close, factors, normal
from rankwise.nn import LowRankConv2d
from rankwise.optim.optimizer import Optimizer
from rankwise.optim.rank_rule import FixedRank
from rankwise.optim.update_rule import SGD

CHANNELS, KERNELS = 3, 7
GEOMETRIES = [
    {"kernel_size": 3},
    {"kernel_size": (3, 2), "stride": 2},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (1, 3), "padding": (0, 2), "stride": (2, 1)},
    {"kernel_size": 2, "dilation": (2, 3), "padding": 1, "stride": 2},
    {"kernel_size": 1},
]


def make(geometry: dict, draw, *, rank: int = 2, spectrum: str = "generic") -> LowRankConv2d:
    size = geometry["kernel_size"]
    kh, kw = (size, size) if isinstance(size, int) else size
    f = factors(KERNELS, CHANNELS * kh * kw, SPECTRA[spectrum](rank), draw)
    return LowRankConv2d(f, bias=normal(KERNELS, draw=draw), **geometry)


def kernel(layer: LowRankConv2d) -> torch.Tensor:
    return layer.factors().dense().reshape(KERNELS, CHANNELS, *layer.geometry.kernel_size)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_output_and_all_gradients_are_those_of_the_dense_twin(geometry, rank, spectrum, draw):
    layer = make(geometry, draw, rank=rank, spectrum=spectrum)
    W, bias = kernel(layer).requires_grad_(), layer.bias.detach().clone().requires_grad_()
    x = normal(2, CHANNELS, 9, 8, draw=draw).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    g = layer.geometry
    y, expected = layer(x), conv2d(twin, W, bias, *g[1:])
    dy = normal(*expected.shape, draw=draw)
    y.backward(dy)
    expected.backward(dy)
    U, _, V = layer.factors()
    G = W.grad.flatten(1)
    close(y, expected)
    close(x.grad, twin.grad)
    close(layer.bias.grad, bias.grad)
    for got, want in zip(layer.gradient(), (G @ V, G.mT @ U, U.mT @ G @ V), strict=True):
        close(got, want, 1e-11)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_its_rows_are_what_the_matrix_multiplies(geometry, draw):
    layer = make(geometry, draw)
    x = normal(2, CHANNELS, 9, 8, draw=draw)
    product = layer.input_rows(x) @ layer.factors().dense().mT + layer.bias
    close(layer.output_rows(layer(x)), product)
    close(layer.output_rows(layer(x[0])), product.chunk(2)[0])


def test_an_image_without_a_batch_is_a_batch_of_one(draw):
    layer = make({"kernel_size": 3}, draw)
    x = normal(CHANNELS, 5, 5, draw=draw)
    close(layer(x), layer(x[None])[0])


def test_one_step_at_full_rank_is_gradient_descent_on_the_kernel(draw):
    layer = make({"kernel_size": 2}, draw, rank=KERNELS)
    optimizer = Optimizer(layer, lr=0.1, rule=SGD(), rank_rule=FixedRank(), max_step=float("inf"))
    x, before = normal(4, CHANNELS, 5, 5, draw=draw), kernel(layer).requires_grad_()
    conv2d(x, before, layer.bias.detach()).square().sum().backward()
    layer(x).square().sum().backward()
    optimizer.step()
    close(kernel(layer), (before - 0.1 * before.grad).detach(), 1e-11)


def test_gradients_of_single_images_by_vmap_are_those_of_a_loop(draw):
    layer = make({"kernel_size": 3, "padding": 1}, draw)
    x = normal(4, CHANNELS, 5, 5, draw=draw)
    named = {n: p.detach() for n, p in layer.named_parameters()}

    def loss(parameters, image):
        return torch.func.functional_call(layer, parameters, (image[None],)).square().sum()

    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(named, x)
    for i, image in enumerate(x):
        for name, value in torch.func.grad(loss)(named, image).items():
            close(together[name][i], value)


def test_under_autocast_it_computes_in_bfloat16_and_keeps_its_parameters(draw):
    layer = make({"kernel_size": 3}, draw).float()
    x = normal(4, CHANNELS, 9, 9, draw=draw).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
    y.float().square().sum().backward()
    assert {p.grad.dtype for p in layer.parameters()} == {torch.float32}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("before, after", [(3, 1), (1, 3)])
def test_a_rank_that_changed_since_the_forward_pass_is_an_error(before, after, autocast, draw):
    layer = make({"kernel_size": 3}, draw, rank=before).float()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(normal(1, CHANNELS, 5, 5, draw=draw).float())
    layer.set_factors_(make({"kernel_size": 3}, draw, rank=after).float().factors())
    with pytest.raises(RuntimeError, match=f"rank changed from {before} to {after}"):
        y.sum().backward()


def test_integer_images_are_refused(draw):
    layer = make({"kernel_size": 3}, draw).float()
    with pytest.raises(TypeError, match=r"got torch.uint8; write `x.float\(\)`"):
        layer(torch.zeros(1, CHANNELS, 5, 5, dtype=torch.uint8))


def test_what_does_not_fit_is_refused(draw):
    f = factors(KERNELS, 10, SPECTRA["generic"](2), draw)
    with pytest.raises(ValueError, match="in_channels \\* 3 \\* 3 rows .* got 10"):
        LowRankConv2d(f, 3)
    with pytest.raises(ValueError, match="`stride` must be at least 1, got 0"):
        LowRankConv2d(f, 1, stride=0)
    for wrong in ((1, 2, 1), 3.0, None, "same", (True, 1)):
        with pytest.raises(TypeError, match="`kernel_size` must be an int or two of them"):
            LowRankConv2d(f, wrong)
    layer = make({"kernel_size": 3}, draw)
    with pytest.raises(ValueError, match=r"must be \(batch, 3, height, width\)"):
        layer(normal(1, 4, 5, 5, draw=draw))
    assert "3, 7, rank=2, kernel_size=(3, 3)" in repr(layer)
