"""The optimizer on Tucker kernels, alone and beside matrices."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from cases import close, normal
from images import mixed, stripes, train, weights
from rankwise.integrators import (
    BUG,
    AugmentedBUG,
    AugmentedPSI,
    BasisEvery,
    CheckedBUG,
    ParallelBUG,
    Reevaluated,
)
from rankwise.nn import LowRankConv2d, LowRankLinear, TuckerConv2d
from rankwise.numerics.factors import Factors, orthonormality_defect
from rankwise.numerics.tucker import Tucker, hosvd, variance_preserving_tucker
from rankwise.numerics.tucker_tangent import project_kernel
from rankwise.optim.adam import Adam
from rankwise.optim.budget import Budget
from rankwise.optim.layers import numbers_held
from rankwise.optim.optimizer import Optimizer
from rankwise.optim.rank_rule import FixedRank
from rankwise.optim.rate_free import RateFree
from rankwise.optim.spectral import Spectral
from rankwise.optim.tolerance import TailTolerance, Tolerance
from rankwise.optim.update_rule import SGD, HeavyBall
from tucker_kernels import CORES, tangent_basis, tucker

RULES = [SGD(), HeavyBall(), Adam(), Adam(spectrum=1.0)]
RANK_RULES = [
    FixedRank(),
    Tolerance(rtol=0.2, every=4, grow=2),
    TailTolerance(rtol=0.3, every=3),
    Budget(parameters=600, every=4, grow=2),
]
FREE = {"max_step": float("inf")}
each_rule = pytest.mark.parametrize("rule", RULES, ids=repr)
each_rank_rule = pytest.mark.parametrize("rank_rule", RANK_RULES, ids=repr)


def layer_of(f: Tucker, **options) -> TuckerConv2d:
    return TuckerConv2d(Tucker(*(t.clone() for t in f)), **options)


def loss_of(layer: nn.Module, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return layer(normal(4, layer.in_channels, 6, 6, draw=draw)).sin().square().mean()


def steps(layer: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for i in range(count):
        optimizer.zero_grad()
        loss_of(layer, i).backward()
        optimizer.step()


def largest_defect(optimizer: Optimizer) -> float:
    bases = [Q.detach() for _, layer in optimizer.layers for Q in (layer.U, layer.V)]
    return max(float(orthonormality_defect(Q)) for Q in bases)


@each_rank_rule
@each_rule
def test_a_mixed_model_learns_and_keeps_its_bases_orthonormal(rule, rank_rule):
    model = mixed()
    rate = 5e-2 if isinstance(rule, SGD) else 1e-2
    optimizer = Optimizer(model, lr=rate, rule=rule, rank_rule=rank_rule, max_step=0.03)
    losses = train(model, optimizer, 0, 80)
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert largest_defect(optimizer) < 1e-12


@pytest.mark.parametrize(
    "rank_rule", [FixedRank(), Tolerance(rtol=0.0, every=2), Budget(parameters=9999, every=2)]
)
@each_rule
def test_zero_rate_changes_no_function_whatever_the_ranks_do(rule, rank_rule):
    model = mixed()
    train(model, Optimizer(model, lr=1e-2, max_step=0.05), 0, 3)
    before = weights(model)
    train(model, Optimizer(model, lr=0.0, rule=rule, rank_rule=rank_rule), 0, 5)
    for one, other in zip(before, weights(model), strict=True):
        close(one, other)


@pytest.mark.parametrize("ranks", [(7, 4), (7, 5)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_at_full_rank_it_is_torch_sgd_on_the_kernel(momentum, ranks, draw):
    in_channels = ranks[1]
    f = tucker(7, in_channels, (3, 2), ranks, draw)
    low, dense = layer_of(f), nn.Conv2d(in_channels, 7, (3, 2), bias=False).double()
    dense.weight.data.copy_(f.dense())
    rule = HeavyBall(momentum) if momentum else SGD()
    steps(low, Optimizer(low, lr=0.5, rule=rule, **FREE), 6)
    steps(dense, torch.optim.SGD(dense.parameters(), lr=0.5, momentum=momentum), 6)
    assert (low.kernel() - f.dense()).norm() > 0.1
    close(low.kernel(), dense.weight.detach())


@pytest.mark.parametrize("control", [None, RateFree()], ids=["rate", "rate-free"])
@each_rule
def test_at_one_place_it_is_the_low_rank_convolution(rule, control, draw):
    """`core` is then `S`, and the coordinates `K`, `L` are those of the matrix, turned."""
    f = tucker(7, 6, (1, 1), (3, 3), draw)
    tensor = layer_of(f)
    matrix = LowRankConv2d(Factors(f.U, f.core[:, :, 0, 0], f.V), 1)
    for layer in (tensor, matrix):
        options = {"max_step": 0.1} if control is None else {"control": control}
        rank_rule = Tolerance(rtol=0.002, every=4, grow=2)
        steps(layer, Optimizer(layer, lr=0.1, rule=rule, rank_rule=rank_rule, **options), 12)
    assert tensor.ranks == (matrix.rank, matrix.rank)
    assert (tensor.kernel() - f.dense()).norm() > 1e-2
    close(tensor.kernel()[:, :, 0, 0], matrix.factors().dense(), 1e-8)


@each_rule
def test_steps_do_not_depend_on_a_rotation_of_the_bases(rule, draw):
    f = tucker(7, 5, (3, 2), (4, 3), draw)
    P, Q = (torch.linalg.qr(normal(size, size, draw=draw))[0] for size in f.ranks)
    turned = Tucker(f.U @ P, torch.einsum("abyx,ac,bd->cdyx", f.core, P, Q), f.V @ Q)
    ends = []
    for start in (f, turned):
        layer = layer_of(start)
        steps(layer, Optimizer(layer, lr=0.05, rule=rule, weight_decay=0.1, max_step=0.1), 8)
        ends.append(layer.kernel())
    assert (ends[0] - f.dense()).norm() > 0.01
    close(*ends, 1e-8)


@pytest.mark.parametrize("core", CORES)
def test_one_step_is_the_projected_gradient_cut_by_hosvd(core, draw):
    f = tucker(7, 5, (3, 2), (3, 2), draw, core)
    layer, before = layer_of(f), f.dense().requires_grad_()
    x = normal(4, 5, 6, 6, draw=draw)
    (conv2d(x, before) - 1.0).square().mean().backward()
    (layer(x) - 1.0).square().mean().backward()
    Optimizer(layer, lr=0.3, rule=SGD(), **FREE).step()
    moved = f.dense() - 0.3 * project_kernel(f, before.grad).dense(f)
    close(layer.kernel(), hosvd(moved, (3, 2), sweeps=0).dense(), 1e-9)


def test_a_small_step_goes_down_by_the_squared_norm_of_the_gradient(draw):
    layer = layer_of(tucker(7, 5, (3, 2), (3, 2), draw))
    drops, rates = [], (1e-2, 1e-3, 1e-4)
    for rate in rates:
        own = copy.deepcopy(layer)
        optimizer = Optimizer(own, lr=rate, rule=SGD(), **FREE)
        loss = loss_of(own)
        loss.backward()
        squared = float(optimizer.gradient_norm()) ** 2
        optimizer.step()
        drops.append((loss.item() - loss_of(own).item()) / (rate * squared))
    assert all(drop > 0 for drop in drops)
    assert abs(drops[2] - 1) < 1e-3 and abs(drops[1] - 1) < 1e-2


def test_clipping_uses_the_norm_of_the_projected_gradient(draw):
    f = tucker(7, 5, (3, 2), (3, 2), draw)
    layer, W = layer_of(f), f.dense().requires_grad_()
    optimizer = Optimizer(layer)
    x = normal(4, 5, 6, 6, draw=draw)
    for kernel in (lambda x: conv2d(x, W), layer):
        kernel(x).sin().sum().backward()
    basis = tangent_basis(f)
    expected = (basis.mT @ W.grad.flatten()).norm()
    close(optimizer.gradient_norm(), expected, 1e-10)
    close(optimizer.clip_gradient_(0.1), expected, 1e-10)
    close(optimizer.gradient_norm(), torch.tensor(0.1, dtype=torch.float64))


@pytest.mark.parametrize("decay", [0.5, 1.0, 2.0])
def test_weight_decay_shrinks_the_kernel_and_not_the_step(decay, draw):
    """With rate 1 the core shrinks, vanishes or turns its sign; the step is from where it was."""
    f = tucker(5, 4, (2, 2), (5, 4), draw)
    layer, W = layer_of(f), f.dense().requires_grad_()
    x = normal(4, 4, 6, 6, draw=draw)
    for kernel in (lambda x: conv2d(x, W), layer):
        kernel(x).sin().sum().backward()
    Optimizer(layer, lr=1.0, weight_decay=decay, rule=SGD(), **FREE).step()
    close(layer.kernel(), (1 - decay) * W.detach() - W.grad, 1e-10)


def test_no_step_is_longer_than_the_trust_region(draw):
    layer = layer_of(tucker(9, 5, (3, 2), (3, 2), draw))
    for rule in RULES:
        before = layer.kernel()
        steps(layer, Optimizer(layer, lr=1e3, rule=rule, max_step=1e-3), 1)
        # The weight is measured as one that preserves variance; a cut adds little to a short step.
        assert float((layer.kernel() - before).norm()) == pytest.approx(1e-3 * 9**0.5, rel=0.05)


@pytest.mark.parametrize("core", CORES)
@each_rule
def test_every_core_trains_on(rule, core, draw):
    f = tucker(7, 5, (3, 3), (3, 2), draw, core)
    layer = layer_of(f)
    optimizer = Optimizer(layer, lr=0.02, rule=rule, max_step=0.05)
    target = normal(7, 5, 3, 3, draw=draw) / 7
    losses = []
    for i in range(50):
        x = normal(4, 5, 6, 6, draw=torch.Generator().manual_seed(i))
        optimizer.zero_grad()
        loss = (layer(x) - conv2d(x, target)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < sum(losses[:10])
    assert largest_defect(optimizer) < 1e-12


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_with_a_non_finite_gradient_is_skipped_and_counted(bad):
    model = mixed()
    optimizer = Optimizer(model, lr=1e-2)
    train(model, optimizer, 0, 2)
    before = copy.deepcopy(model.state_dict())
    (model(stripes(4, 0)[0]).sum() * bad).backward()
    optimizer.step()
    assert (optimizer.steps, optimizer.skipped) == (2, 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(map(torch.isfinite, map(torch.tensor, train(model, optimizer, 2, 4))))


def test_orthonormality_holds_in_float32_with_bfloat16_products():
    model = mixed(dtype=torch.float32)
    optimizer = Optimizer(model, lr=1e-2, rank_rule=Tolerance(every=10, grow=2), max_step=0.05)
    for i in range(200):
        x, kinds = stripes(16, i, dtype=torch.float32)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), kinds)
        loss.backward()
        optimizer.step()
    assert optimizer.skipped == 0 and largest_defect(optimizer) < 1e-5


@pytest.mark.parametrize("control", [None, RateFree()], ids=["rate", "rate-free"])
@each_rank_rule
@each_rule
def test_a_saved_optimizer_continues_exactly_after_ranks_changed(rule, rank_rule, control):
    def fresh() -> tuple[nn.Module, Optimizer]:
        model = mixed()
        return model, Optimizer(model, lr=1e-2, rule=rule, rank_rule=rank_rule, control=control)

    model, optimizer = fresh()
    train(model, optimizer, 0, 6)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    expected = train(model, optimizer, 6, 12)
    again, continued = fresh()
    again.load_state_dict(saved[0])
    continued.load_state_dict(saved[1])
    assert train(again, continued, 6, 12) == expected
    assert all(map(torch.equal, weights(model), weights(again)))


def test_state_of_other_ranks_is_refused():
    model = mixed()
    optimizer = Optimizer(model)
    train(model, optimizer, 0, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    model[2].set_factors_(hosvd(model[2].kernel(), (4, 2)))
    with pytest.raises(ValueError, match="'2' has rank 4 x 2, but .* saved with rank 4 x 3"):
        Optimizer(model).load_state_dict(saved)


@pytest.mark.parametrize("start", [(2, 2), (12, 8)])
def test_ranks_of_both_modes_recover_those_of_the_target(start, draw):
    target = tucker(12, 8, (3, 3), (5, 3), draw, "equal singular values").dense()
    layer = layer_of(hosvd(0.1 * normal(12, 8, 3, 3, draw=draw), start))
    optimizer = Optimizer(layer, lr=2e-2, rank_rule=Tolerance(rtol=0.05, every=10), max_step=0.1)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 300)
    for _ in range(300):
        x = normal(4, 8, 6, 6, draw=draw)
        optimizer.zero_grad()
        (layer(x) - conv2d(x, target)).square().mean().backward()
        optimizer.step()
        scheduler.step()
    assert layer.ranks == (5, 3)
    assert (layer.kernel() - target).norm() < 0.05 * target.norm()


@pytest.mark.parametrize("start", [(2, 2), (12, 8)])
def test_a_budget_is_for_all_numbers_of_the_layer(start, draw):
    layer = layer_of(tucker(12, 8, (3, 3), start, draw))
    rule = Budget(parameters=300, every=4, grow=2, keep=0.1)
    optimizer = Optimizer(layer, lr=1e-2, rank_rule=rule, max_step=0.05)
    seen = []
    for _ in range(10):
        steps(layer, optimizer, 4)
        held = sum(t.numel() for t in layer.factors())
        assert held == numbers_held(optimizer.layers)
        seen.append(held)
    assert layer.ranks[0] != start[0] and layer.ranks[1] != start[1]
    assert 150 < seen[-1] <= 300
    assert start == (2, 2) or all(b <= max(a, 300) for a, b in pairwise(seen))


def test_the_first_rate_free_step_is_as_long_as_it_was_told(draw):
    f = tucker(6, 4, (2, 2), (6, 4), draw)
    layer = layer_of(f)
    steps(layer, Optimizer(layer, rule=SGD(), control=RateFree(start=0.01)), 1)
    way = (layer.kernel() - f.dense()).norm()
    close(way, torch.tensor(0.01 * 6**0.5, dtype=torch.float64), 1e-10)


def as_images(in_channels: int, kernel: tuple[int, int]) -> torch.Tensor:
    """Images of the size of the kernel, on which a convolution gives the entries of its kernel."""
    size = in_channels * kernel[0] * kernel[1]
    return torch.eye(size, dtype=torch.float64).reshape(size, in_channels, *kernel)


def test_every_rate_free_step_follows_the_formula(draw):
    """There and back again: the distance grows on the way out and rests on the way back."""
    f = tucker(6, 4, (2, 2), (6, 4), draw)
    layer, W0 = layer_of(f), f.dense()
    optimizer = Optimizer(layer, rule=SGD(), control=RateFree(start=0.01, growth=0.5))
    away, W = W0 + normal(6, 4, 2, 2, draw=draw), W0
    size, farthest, squares, grown = 6**0.5, 0.01, 0.0, []
    for target in [away] * 12 + [W0] * 8:
        optimizer.zero_grad()
        entries = layer(as_images(4, (2, 2)))[:, :, 0, 0].mT.reshape_as(target)
        (0.5 * (entries - target).square().sum()).backward()
        optimizer.step()
        G = W - target
        before = farthest
        if (G * (W - W0)).sum() < 0:
            farthest = min(max(farthest, float((W - W0).norm()) / size), 1.5 * farthest)
        grown.append(farthest > before)
        squares += float(G.norm()) ** 2
        W = W - farthest * size / squares**0.5 * G
        close(layer.kernel(), W, 1e-8)
    assert sum(grown[:12]) > 3 and not any(grown[12:])


def test_adam_scales_output_and_input_channels_as_its_dense_formula(draw):
    f = tucker(7, 5, (3, 2), (4, 3), draw)
    sizes = torch.logspace(1, -1, 7, dtype=torch.float64)[:, None, None, None]
    G = sizes * normal(7, 5, 3, 2, draw=draw) * torch.linspace(0.1, 3, 5)[:, None, None]
    xi = project_kernel(f, G)
    rows, columns = (t.square().sum(1) for t in (xi.K, xi.L))
    left, right = ((t / t.mean()) ** -0.5 for t in (rows, columns))
    scaled = torch.einsum("o,oiyx,i->oiyx", left, xi.dense(f), right)
    expected = project_kernel(f, scaled).dense(f) / xi.dense(f).norm()
    D = Adam(spectrum=1.0, eps=0.0).direction(f, xi, {})
    close(D.dense(f), expected, 1e-9)


@pytest.mark.parametrize(
    "options, error",
    [
        ({"rule": Spectral()}, r"rule=Spectral.* layer '2' is a TuckerConv2d: use `Adam\(\)`"),
        ({"integrator": AugmentedBUG()}, r"integrator=AugmentedBUG.* use `ParallelBUG\(\)`"),
        ({"integrator": AugmentedPSI()}, "integrator=AugmentedPSI"),
        ({"integrator": CheckedBUG()}, "integrator=CheckedBUG"),
        ({"integrator": BUG(), "rule": SGD()}, "integrator=BUG"),
        ({"integrator": Reevaluated(ParallelBUG()), "rule": SGD()}, "integrator=Reevaluated"),
        ({"integrator": BasisEvery(ParallelBUG(), every=2)}, "integrator=BasisEvery"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_made_for_matrices_is_refused(options, error):
    with pytest.raises(ValueError, match=error):
        Optimizer(mixed(), **options)
    Optimizer(nn.Sequential(mixed()[0], mixed()[5]), **options)


def test_a_kernel_that_trains_only_in_part_is_refused():
    model = mixed()
    model[2].core.requires_grad_(False)
    with pytest.raises(ValueError, match="only U, V require .* all three of U, core, V or none"):
        Optimizer(model)


def test_a_small_network_with_adaptive_ranks_learns_as_well_as_its_dense_twin():
    def network(first: nn.Module, second: nn.Module) -> nn.Sequential:
        torch.manual_seed(0)
        parts = first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(*parts, nn.Flatten(), nn.Linear(16, 3))

    def start(*size) -> TuckerConv2d:
        draw, like = torch.Generator().manual_seed(0), torch.empty(0)
        f = variance_preserving_tucker(*size, gain=2**0.5, generator=draw, like=like)
        return TuckerConv2d(f, padding=1, bias=torch.zeros(size[0]))

    torch.manual_seed(0)
    dense = network(nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 16, 3, padding=1))
    low = network(start(12, 1, (3, 3), (6, 1)), start(16, 12, (3, 3), (16, 12)))
    rule = Tolerance(rtol=0.3, every=20)
    ours = Optimizer(low, lr=1e-2, rank_rule=rule, max_step=0.02)
    train(dense, torch.optim.AdamW(dense.parameters(), lr=1e-2), 0, 150)
    train(low, ours, 0, 150)
    x, kinds = stripes(300, 999, dtype=torch.float32)
    right = [float((model(x).argmax(1) == kinds).float().mean()) for model in (dense, low)]
    assert right[0] > 0.9 and right[1] > right[0] - 0.03
    assert ours.layers[1].layer.ranks < (12, 9)
    assert isinstance(low[3], TuckerConv2d) and not isinstance(low[3], LowRankLinear)
