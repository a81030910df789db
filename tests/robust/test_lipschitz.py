"""Bounds of networks: above every slope that is found, and as tight as claimed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import rankwise as rw
from classifiers import clouds, cnn, fitted, mlp, randomise_norms_, steepest
from rankwise.recipes.networks import network
from rankwise.robust import LAYERS, Sphere, constant, lipschitz_bound, product_bound, slopes_up_to
from rankwise.robust.reachable import Ellipsoid
from rankwise.robust.refine import refined
from rankwise.robust.walk import Network


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def check(model: nn.Module, x: torch.Tensor) -> None:
    bound, product = lipschitz_bound(model, x, rounds=5), product_bound(model, x)
    assert steepest(model, x) <= bound <= product * (1 + 1e-7)
    with torch.no_grad():
        gap, distance = model(x) - model(x.flip(0)), (x - x.flip(0)).flatten(1)
    ratios = gap.norm(dim=1) / distance.norm(dim=1)
    assert ratios.nan_to_num().max() <= bound


ACTIVATIONS = [
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Sigmoid,
    nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Identity,
    lambda: nn.LeakyReLU(2.5), lambda: nn.LeakyReLU(-1.5), lambda: nn.ELU(3.0),
    lambda: nn.GELU(approximate="tanh"),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_slope_of_an_mlp_exceeds_the_bound(activation):
    for rank in (0, 1, 3):
        model = mlp(5, 7, 6, 3, activation=activation, rank=rank)
        check(model, 3 * randn(30, 5))


@pytest.mark.parametrize("activation", [*ACTIVATIONS, nn.MaxPool1d])
def test_no_activation_is_steeper_than_its_bound(activation):
    layer = (activation(3) if activation is nn.MaxPool1d else activation()).double()
    x = torch.linspace(-9, 9, 3001, dtype=torch.float64)[:, None].expand(-1, 3).contiguous()
    x = x if activation is not nn.MaxPool1d else x[:, None]
    bound = lipschitz_bound(nn.Sequential(layer), x)
    y = layer(x).detach().flatten(1)
    slopes = (y[1:] - y[:-1]).abs().amax(1) / (x[1] - x[0]).amax()
    assert 0.9 * bound <= slopes.max() <= bound


@given(
    seed=st.integers(0, 2**20),
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    rank=st.integers(0, 3),
    rounds=st.integers(0, 4),
)
@settings(max_examples=40)
def test_whatever_the_widths_and_ranks(seed, widths, rank, rounds):
    model = mlp(*widths, rank=rank, seed=seed)
    x = randn(8, widths[0])
    bound = lipschitz_bound(model, x, rounds=rounds)
    assert steepest(model, x) <= bound <= product_bound(model, x) * (1 + 1e-7)


@pytest.mark.parametrize("rank", [0, 2])
def test_after_training_too(rank):
    x, y = clouds(60, 6)
    check(fitted(mlp(6, 16, 12, 3, rank=rank), x, y), x)


@pytest.mark.parametrize(
    "options",
    [
        {"pool": nn.MaxPool2d(2)},
        {"pool": nn.MaxPool2d(3, stride=1, padding=1), "groups": 2},
        {"pool": nn.MaxPool2d(2, dilation=2, stride=2), "dilation": 2},
        {"pool": nn.AvgPool2d(2), "groups": 2},
        {"pool": nn.AvgPool2d(3, stride=2, padding=1), "stride": 2},
        {"pool": nn.AdaptiveAvgPool2d(2)},
        {"pool": nn.AdaptiveAvgPool2d((1, None)), "stride": 2},
        {"pool": nn.Dropout2d()},
    ],
)
@pytest.mark.parametrize("rank", [0, 2])
def test_no_slope_of_a_cnn_exceeds_the_bound(options, rank):
    model = cnn(**options)
    if rank:
        rw.factorize_(model, rank=rank, min_features=1)
    check(model, 2 * randn(12, 2, 8, 8))


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, stride=1),
        nn.AvgPool2d((2, 3), stride=(2, 1), padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((2, 6)),
    ],
)
def test_averages_against_their_matrix(pool):
    units = torch.eye(144, dtype=torch.float64).reshape(144, 1, 12, 12)
    exact = torch.linalg.matrix_norm(pool(units).flatten(1), 2)
    bound = lipschitz_bound(nn.Sequential(pool), units)
    assert exact * (1 - 1e-9) <= bound <= 1.2 * exact


@pytest.mark.parametrize(
    "pool, bound",
    [
        (nn.MaxPool2d(2), 1),
        (nn.MaxPool2d(3, stride=2), 2),
        (nn.MaxPool2d((3, 2), stride=(1, 2)), 3**0.5),
        (nn.MaxPool2d(3, stride=2, dilation=2), 3),
        (nn.MaxPool2d(3, stride=2, dilation=3), 2),
    ],
)
def test_a_maximum_counts_the_windows_of_a_pixel(pool, bound):
    """One bright pixel moves as many outputs as there are windows that it is in."""
    units = torch.eye(256, dtype=torch.float64).reshape(256, 1, 16, 16)
    assert lipschitz_bound(nn.Sequential(pool), units) == pytest.approx(bound)
    assert pool(units).flatten(1).norm(dim=1).max() == pytest.approx(bound)


def test_one_linear_map_is_exact():
    layer = nn.Linear(6, 4).double()
    exact = float(torch.linalg.matrix_norm(layer.weight.detach(), 2))
    assert lipschitz_bound(nn.Sequential(layer), randn(1, 6)) == pytest.approx(exact, rel=1e-8)


def test_linear_maps_in_a_row_are_one():
    layers = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 5)).double().eval()
    randomise_norms_(layers)
    exact = steepest(layers, randn(1, 6))
    bound = lipschitz_bound(layers, randn(1, 6))
    assert exact <= bound == pytest.approx(exact, rel=1e-8)
    assert product_bound(layers, randn(1, 6)) > 1.05 * exact


def test_a_batch_norm_is_part_of_the_map_before_it():
    conv, norm = nn.Conv2d(2, 4, 1).double(), nn.BatchNorm2d(4).double().eval()
    randomise_norms_(norm)
    model = nn.Sequential(conv, norm)
    x = randn(2, 2, 3, 3)
    assert product_bound(model, x) == pytest.approx(steepest(model, x), rel=1e-8)
    alone = nn.Sequential(norm)
    assert lipschitz_bound(alone, randn(1, 4, 3, 3)) == pytest.approx(
        steepest(alone, randn(1, 4, 3, 3)), rel=1e-8
    )


def test_closed_form_against_whole_matrices():
    model = mlp(5, 7, 6, 3)
    Y = torch.eye(5, dtype=torch.float64)
    for layer in (model[0], model[2]):
        M = layer.weight.detach() @ Y @ layer.weight.detach().mT
        lam = 2 / torch.linalg.matrix_norm(M, 2)
        Y = torch.linalg.inv(lam * torch.eye(len(M), dtype=torch.float64) - lam**2 / 4 * M)
    W = model[4].weight.detach()
    exact = torch.linalg.matrix_norm(W @ Y @ W.mT, 2).sqrt()
    assert lipschitz_bound(model, randn(1, 5), rounds=0) == pytest.approx(float(exact), rel=1e-7)


@pytest.mark.parametrize("rounds", [0, 3])
@pytest.mark.parametrize("rank", [1, 3])
def test_factors_and_their_product_have_one_bound(rank, rounds):
    model = mlp(9, 8, 8, 3, rank=rank)
    x = randn(1, 9)
    low = lipschitz_bound(model, x, rounds=rounds), product_bound(model, x)
    rw.densify_(model)
    dense = lipschitz_bound(model, x, rounds=rounds), product_bound(model, x)
    assert low == pytest.approx(dense, rel=1e-10 if rounds == 0 else 1e-6)


def test_a_core_of_deficient_rank_or_equal_singular_values_or_zero():
    for S in (torch.eye(3), torch.diag(torch.tensor([1.0, 1, 0])), torch.zeros(3, 3)):
        model = mlp(9, 8, 8, 3, rank=3)
        with torch.no_grad():
            model[2].S.copy_(S)
        x = randn(6, 9)
        low = lipschitz_bound(model, x, rounds=3)
        assert steepest(model, x) <= low
        rw.densify_(model)
        assert low == pytest.approx(lipschitz_bound(model, x, rounds=3), rel=1e-5, abs=1e-12)


def test_refinement_only_ever_helps_and_does_here():
    x, y = clouds(60, 6)
    model = fitted(mlp(6, 16, 12, 3, rank=4), x, y)
    closed = lipschitz_bound(model, x, rounds=0)
    assert lipschitz_bound(model, x, rounds=30) < 0.9 * closed
    assert lipschitz_bound(model, x, rounds=1) <= closed
    for without_gradients in (torch.no_grad(), torch.inference_mode()):
        with without_gradients:
            assert lipschitz_bound(model, x, rounds=30) < 0.9 * closed


def test_work_in_low_rank_stays_thin():
    model = mlp(40, 30, 20, 3, rank=2)
    reachable = refined(Network(model[:4], randn(1, 40)), 0, lambda C: C.norm())
    assert isinstance(reachable, Ellipsoid) and reachable.factor.shape == (20, 2)


@pytest.mark.parametrize("merged", [False, True])
def test_an_adapter_is_its_base_and_the_factors(merged):
    model = mlp(9, 8, 3)
    rw.adapt_(model, rank=2, min_features=1, scale=1.5)
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.S)
    if merged:
        rw.merge_(model)
    check(model, randn(20, 9))
    first = nn.Sequential(model[0])
    bound = lipschitz_bound(first, randn(1, 9))
    assert bound == pytest.approx(steepest(first, randn(1, 9)), rel=1e-7)


def test_one_map_for_all_places_of_a_sequence():
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).double()
    check(model, randn(10, 3, 5))


@pytest.mark.parametrize("name", ["mlp", "lenet", "cnn", "mobile"])
def test_built_in_networks_have_bounds(name):
    model = network(name, classes=3, channels=1, size=16, seed=0).double()
    rw.factorize_(model, rank=4)
    randomise_norms_(model.eval())
    check(model, randn(4, 1, 16, 16))


def test_it_leaves_the_model_as_it_was_and_means_evaluation():
    model = cnn(pool=nn.Dropout2d()).train()
    model[0][3].eval()
    modes = [m.training for m in model.modules()]
    state = {name: t.clone() for name, t in model.state_dict().items()}
    x = randn(2, 2, 8, 8)
    bound = lipschitz_bound(model, x, rounds=2)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert lipschitz_bound(model.eval(), x, rounds=2) == bound


def test_float32_and_bfloat16_weights():
    model = mlp(6, 8, 3, rank=2).float()
    single = lipschitz_bound(model, torch.randn(1, 6), rounds=2)
    assert single == pytest.approx(lipschitz_bound(model.double(), randn(1, 6), rounds=2), rel=1e-6)
    assert lipschitz_bound(mlp(6, 3).bfloat16(), torch.randn(1, 6).bfloat16()) > 0


class Doubled(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 2 * self.inner(x)


def test_a_layer_of_ones_own(monkeypatch):
    model = nn.Sequential(nn.Sequential(), Doubled(nn.Linear(4, 3))).double()
    with pytest.raises(ValueError, match=r"layer '1' \(Doubled\).*LAYERS\[Doubled\] = rule"):
        lipschitz_bound(model, randn(1, 4))
    inner = product_bound(model[1].inner, randn(1, 4))
    monkeypatch.setitem(LAYERS, Doubled, lambda m, s, w: Sphere(2 * w.through([m.inner], s).radius))
    assert product_bound(model, randn(1, 4)) == pytest.approx(2 * inner)
    monkeypatch.setitem(LAYERS, Doubled, constant(5.0))
    assert lipschitz_bound(model, randn(1, 4)) == pytest.approx(5.0)
    monkeypatch.setitem(LAYERS, Doubled, slopes_up_to(3.0))
    assert lipschitz_bound(model, randn(1, 4)) == pytest.approx(3.0)


def test_a_subclass_counts_as_its_base_unless_it_computes_otherwise():
    class Named(nn.ReLU):
        pass

    class Squared(nn.ReLU):
        def forward(self, x):
            return x.square()

    class Chain(nn.Sequential):
        def forward(self, x):
            return 9 * super().forward(x)

    assert lipschitz_bound(nn.Sequential(Named()), randn(1, 4)) == pytest.approx(1.0)
    for model, kind in ((nn.Sequential(Squared()), "Squared"), (Chain(nn.ReLU()), "Chain")):
        with pytest.raises(ValueError, match=rf"\({kind}\) has no known"):
            lipschitz_bound(model, randn(1, 4))


def test_a_subclass_of_a_convolution_counts_as_one():
    class Named(nn.Conv2d):
        pass

    torch.manual_seed(0)
    model = nn.Sequential(Named(2, 3, 3), nn.BatchNorm2d(3)).double().eval()
    randomise_norms_(model)
    plain = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).double().eval()
    plain.load_state_dict(model.state_dict())
    x = randn(1, 2, 6, 6)
    assert lipschitz_bound(model, x) == lipschitz_bound(plain, x)


@pytest.mark.parametrize("inner", [nn.MaxPool2d(3), nn.Upsample(scale_factor=2)])
def test_a_convolution_in_two_places_is_taken_at_the_larger_image(inner, monkeypatch):
    monkeypatch.setitem(LAYERS, nn.Upsample, constant(2.0))
    conv = nn.Conv2d(2, 2, 3, padding=1).double()
    x = randn(1, 2, 6, 6)
    largest = 12 if isinstance(inner, nn.Upsample) else 6
    alone = lipschitz_bound(nn.Sequential(conv), randn(1, 2, largest, largest))
    both = lipschitz_bound(nn.Sequential(conv, inner, conv), x)
    assert both == pytest.approx(alone**2 * lipschitz_bound(nn.Sequential(inner), x))


def test_an_adaptive_pool_in_two_places_is_taken_at_the_smaller_image():
    pool = nn.AdaptiveAvgPool2d(4)
    bound = lipschitz_bound(nn.Sequential(pool, nn.ReLU(), pool), randn(1, 1, 8, 8))
    # The first place gains 1 / 2, the second 1.
    assert 0.5 <= bound == pytest.approx(1.0)


@pytest.mark.parametrize(
    "layer",
    [nn.MaxPool2d(3, stride=1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(3), nn.Conv2d(1, 1, 3)],
)
def test_an_image_without_channels_is_refused(layer):
    """Torch takes the rows for channels; a bound by the height alone would be too small."""
    with pytest.raises(
        ValueError, match=r"gets an input of shape \(1, 9, 9\), where a bound needs"
    ):
        lipschitz_bound(nn.Sequential(layer.double()), randn(1, 9, 9))


def test_a_signal_without_channels_is_refused():
    with pytest.raises(ValueError, match=r"MaxPool1d.*needs \(rows, channels, length\)"):
        lipschitz_bound(nn.Sequential(nn.MaxPool1d(2)), randn(1, 6))


def test_a_forward_inside_or_on_the_instance_is_another_function():
    class Tenfold(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return super()._conv_forward(x, 10 * weight, bias)

    patched = nn.Linear(4, 4).double()
    patched.forward = lambda x: 100 * x  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"Tenfold.*no known Lipschitz bound"):
        lipschitz_bound(nn.Sequential(Tenfold(1, 2, 3).double()), randn(1, 1, 6, 6))
    with pytest.raises(
        ValueError, match=r"layer '0' \(Linear\) has a `forward` set on the instance"
    ):
        lipschitz_bound(nn.Sequential(patched), randn(1, 4))


def test_a_weight_that_moves_in_training_is_left_where_it_is():
    linear = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 5))
    model = nn.Sequential(linear, nn.ReLU(), nn.Linear(5, 2)).double().train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    bound = lipschitz_bound(model, randn(2, 5), rounds=1)
    product_bound(model, randn(2, 5))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model.training and bound == lipschitz_bound(model.eval(), randn(2, 5), rounds=1)


def test_a_layer_of_zeros_ends_the_descent():
    dead = nn.Linear(5, 4)
    nn.init.zeros_(dead.weight)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), dead, nn.ReLU(), nn.Linear(4, 3)).double()
    assert 0.0 <= lipschitz_bound(model, randn(1, 6)) < 1e-50


def test_a_batch_norm_of_no_possible_variance_is_named():
    norm = nn.BatchNorm1d(6).double()
    norm.running_var.fill_(-1.0)
    with pytest.raises(ValueError, match=r"BatchNorm1d\) has NaN or infinite weights"):
        lipschitz_bound(nn.Sequential(norm), randn(1, 6))


def test_one_module_for_images_and_vectors_is_refused_where_that_matters():
    relu, linear = nn.ReLU(), nn.Linear(3, 3).double()
    model = nn.Sequential(relu, nn.Flatten(), relu)
    assert lipschitz_bound(model, randn(1, 2, 3, 3)) == pytest.approx(1.0)
    model = nn.Sequential(linear, nn.AdaptiveAvgPool2d((1, 3)), nn.Flatten(), linear)
    with pytest.raises(ValueError, match=r"layer '0' \(Linear\) is not called with tensors of one"):
        lipschitz_bound(model, randn(1, 1, 2, 3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(bad):
    model = mlp(5, 7, 3)
    with torch.no_grad():
        model[2].weight[1, 2] = bad
    with pytest.raises(ValueError, match=r"layer '2' \(Linear\) has NaN or infinite weights"):
        lipschitz_bound(model, randn(1, 5))


@pytest.mark.parametrize(
    "layer, told",
    [
        (nn.AvgPool2d(2, ceil_mode=True), "windows of several sizes"),
        (nn.AvgPool2d(3, padding=1, count_include_pad=False), "windows of several sizes"),
        (nn.AvgPool2d(2, divisor_override=1), "windows of several sizes"),
        (nn.AdaptiveAvgPool2d(4), "windows that overlap"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), "padding_mode='circular'"),
        (nn.BatchNorm2d(2, track_running_stats=False), "track_running_stats=True"),
        (nn.LayerNorm(6), "no known Lipschitz bound"),
        (nn.Softplus(threshold=1.0), "jumps by 0.4 at threshold=1"),
    ],
)
def test_layers_without_a_bound(layer, told):
    model = nn.Sequential(nn.Sequential(nn.Identity(), layer)).double()
    with pytest.raises(ValueError, match=rf"layer '0.1' \({type(layer).__name__}\).*{told}"):
        lipschitz_bound(model, randn(1, 2, 6, 6))


def test_a_batch_norm_that_is_multiplied_in_has_its_own_name():
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), norm).double()
    with pytest.raises(ValueError, match=r"layer '1' \(BatchNorm2d\) normalises by the batch"):
        lipschitz_bound(model, randn(1, 2, 6, 6))


def test_arguments_are_checked():
    model = mlp(5, 7, 3)
    with pytest.raises(ValueError, match="`rounds` must be at least 0, got -1"):
        lipschitz_bound(model, randn(1, 5), rounds=-1)
    for x, got in ((randn(5), r"\(5,\)"), (randn(0, 5), r"\(0, 5\)"), ([1.0], "list")):
        with pytest.raises(ValueError, match=rf"`x` must be a tensor \(rows, ...\).*{got}"):
            lipschitz_bound(model, x)
    with pytest.raises(ValueError, match="`bound` must be finite and not negative, got -1"):
        constant(-1.0)
