"""The convolution in Tucker form against its dense twin, and under what torch does to a layer."""

import copy

import pytest
import torch
from torch.nn.functional import conv2d

from cases import close, normal
from rankwise.nn import TuckerConv2d
from rankwise.numerics.tucker import Tucker
from rankwise.numerics.tucker_tangent import project_kernel
from tucker_kernels import CORES, kernel_of, tucker

CHANNELS, KERNELS = 4, 7
GEOMETRIES = [
    ((3, 3), {}),
    ((3, 2), {"stride": 2}),
    ((3, 3), {"padding": 1}),
    ((1, 3), {"padding": (0, 2), "stride": (2, 1)}),
    ((2, 2), {"dilation": (2, 3), "padding": 1, "stride": 2}),
]
RANKS = [(1, 1), (2, 3), (4, 2), (7, 4)]
CASES = [(kernel, options, ranks) for kernel, options in GEOMETRIES for ranks in RANKS]
CASES += [((1, 1), {}, (1, 1)), ((1, 1), {"stride": 2}, (3, 3)), ((1, 1), {"padding": 1}, (4, 4))]


def make(kernel, options, ranks, draw, core="generic") -> TuckerConv2d:
    f = tucker(KERNELS, CHANNELS, kernel, ranks, draw, core)
    return TuckerConv2d(f, bias=normal(KERNELS, draw=draw), **options)


def plain(draw, ranks=(2, 3)) -> TuckerConv2d:
    return make((3, 3), {"padding": 1}, ranks, draw)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_all_gradients_are_those_of_the_dense_twin(case, core, draw):
    layer = make(*case, draw, core)
    f = layer.factors()
    W = kernel_of(f.core, f.U, f.V).requires_grad_()
    bias = layer.bias.detach().clone().requires_grad_()
    x = normal(2, CHANNELS, 9, 8, draw=draw).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    y, expected = layer(x), conv2d(twin, W, bias, *layer.geometry[1:])
    dy = normal(*expected.shape, draw=draw)
    y.backward(dy)
    expected.backward(dy)
    close(y, expected)
    close(x.grad, twin.grad, 1e-11)
    close(layer.bias.grad, bias.grad)
    for got, wanted in zip(layer.tangent_gradient(), project_kernel(f, W.grad), strict=True):
        close(got, wanted, 1e-11)


def test_gradients_come_for_each_part_that_asks_and_no_other(draw):
    layer, x = plain(draw), normal(2, CHANNELS, 5, 5, draw=draw)
    layer(x).sin().sum().backward()
    whole = {name: p.grad for name, p in layer.named_parameters()}
    for name in whole:
        single = copy.deepcopy(layer).requires_grad_(False)
        single.zero_grad()
        getattr(single, name).requires_grad_(True)
        single(x).sin().sum().backward()
        got = {n: p.grad for n, p in single.named_parameters() if p.grad is not None}
        assert set(got) == {name}
        close(got[name], whole[name])


def test_an_image_without_a_batch_is_a_batch_of_one(draw):
    layer, x = plain(draw), normal(CHANNELS, 5, 5, draw=draw)
    close(layer(x), layer(x[None])[0])


def test_gradients_accumulate_over_backward_passes(draw):
    layer, x = plain(draw), normal(4, CHANNELS, 5, 5, draw=draw)
    layer(x).square().sum().backward()
    whole = [g.clone() for g in layer.gradient()]
    layer.zero_grad()
    for part in x.split(1):
        layer(part).square().sum().backward()
    for got, wanted in zip(layer.gradient(), whole, strict=True):
        close(got, wanted, 1e-11)


def test_gradients_of_single_images_by_vmap_are_those_of_a_loop(draw):
    layer, x = plain(draw), normal(4, CHANNELS, 5, 5, draw=draw)
    named = {n: p.detach() for n, p in layer.named_parameters()}

    def loss(parameters, image):
        return torch.func.functional_call(layer, parameters, (image[None],)).square().sum()

    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(named, x)
    for i, image in enumerate(x):
        for name, value in torch.func.grad(loss)(named, image).items():
            close(together[name][i], value, 1e-11)


def test_under_autocast_it_computes_in_bfloat16_and_keeps_its_parameters(draw):
    layer, x = plain(draw).float(), normal(4, CHANNELS, 9, 9, draw=draw).float()
    layer(x).square().sum().backward()
    exact = [g.clone() for g in layer.gradient()]
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
    y.float().square().sum().backward()
    for got, wanted in zip(layer.gradient(), exact, strict=True):
        assert got.dtype == torch.float32
        assert (got - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "after, error", [((4, 2), "rank changed from 2 to 4"), ((2, 1), "by an inplace operation")]
)
def test_a_rank_that_changed_since_the_forward_pass_is_an_error(after, error, autocast, draw):
    layer = plain(draw).float()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(normal(1, CHANNELS, 5, 5, draw=draw).float())
    layer.set_factors_(plain(draw, after).float().factors())
    assert layer.ranks == after
    with pytest.raises(RuntimeError, match=error):
        y.sum().backward()


def test_a_state_dict_brings_its_ranks(draw):
    layer, other = plain(draw), plain(draw, (4, 2))
    kept = [id(p) for p in layer.parameters()]
    layer.load_state_dict(other.state_dict())
    assert layer.ranks == (4, 2) and [id(p) for p in layer.parameters()] == kept
    close(layer.kernel(), other.kernel())
    flat = make((1, 9), {}, (2, 3), draw)
    with pytest.raises(RuntimeError, match="size mismatch for core"):
        layer.load_state_dict(flat.state_dict())


def test_a_compiled_layer_is_the_layer_also_after_a_change_of_ranks(draw):
    torch.compiler.reset()
    layer = plain(draw)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for ranks in ((2, 3), (4, 2)):
        layer.set_factors_(plain(draw, ranks).factors())
        x, slots = normal(2, CHANNELS, 5, 5, draw=draw), []
        for module in (layer, compiled):
            layer.zero_grad()
            module(x).square().sum().backward()
            slots.append(layer.gradient())
        close(compiled(x), layer(x))
        for got, expected in zip(*slots, strict=True):
            close(got, expected, 1e-11)


def test_what_does_not_fit_is_refused(draw):
    f = tucker(KERNELS, CHANNELS, (3, 3), (2, 3), draw)
    with pytest.raises(ValueError, match="`stride` must be at least 1, got 0"):
        TuckerConv2d(f, stride=0)
    with pytest.raises(ValueError, match=r"`bias` must have shape \(7,\)"):
        TuckerConv2d(f, bias=torch.zeros(4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"got U \(7, 2\), core \(2, 3, 3, 3\), V \(4, 2\)"):
        TuckerConv2d(Tucker(f.U, f.core, f.V[:, :2]))
    layer = plain(draw)
    with pytest.raises(ValueError, match=r"must be \(batch, 4, height, width\)"):
        layer(normal(1, 3, 5, 5, draw=draw))
    with pytest.raises(TypeError, match=r"got torch.uint8; write `x.float\(\)`"):
        layer(torch.zeros(1, CHANNELS, 5, 5, dtype=torch.uint8))
    assert repr(layer) == "TuckerConv2d(4, 7, ranks=(2, 3), kernel_size=(3, 3), padding=(1, 1))"
    assert (layer.in_channels, layer.out_channels, layer.kernel_size) == (4, 7, (3, 3))
