"""The integrators inside the optimizer: one backward pass or several, on networks."""

import copy
import gc

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from networks import adapter, batch, dense_of, thin_layers, train
from rankwise.integrators.abc_psi import AugmentedPSI
from rankwise.integrators.augmented_bug import AugmentedBUG
from rankwise.integrators.bug import BUG
from rankwise.integrators.checked_bug import CheckedBUG
from rankwise.integrators.coefficients import BasisEvery, Coefficients
from rankwise.integrators.parallel_bug import ParallelBUG
from rankwise.integrators.projector_splitting import ProjectorSplitting
from rankwise.integrators.reevaluated import Reevaluated
from rankwise.nn import LowRankConv2d, LowRankLinear
from rankwise.numerics.factors import orthonormality_defect
from rankwise.numerics.init import variance_preserving
from rankwise.optim.adam import Adam
from rankwise.optim.batches import nearest_multiple
from rankwise.optim.budget import Budget
from rankwise.optim.optimizer import Optimizer
from rankwise.optim.rank_rule import FixedRank
from rankwise.optim.spectral import Spectral
from rankwise.optim.tolerance import TailTolerance, Tolerance
from rankwise.optim.update_rule import SGD, HeavyBall

INF = float("inf")
ONE_BACKWARD = [ParallelBUG(), CheckedBUG(), AugmentedBUG(), AugmentedPSI(), Coefficients()]
SEVERAL = [ProjectorSplitting(), BUG(), Reevaluated(AugmentedBUG())]
RULES = [SGD(), HeavyBall(), Adam(), Spectral()]
RANK_RULES = [
    FixedRank(),
    Tolerance(every=4, grow=2),
    Budget(parameters=60, every=4, grow=2),
    TailTolerance(0.2, every=4, max_rank=4),
    TailTolerance(0.2, order=2.0),
]


def train_by_closure(model: nn.Module, optimizer: Optimizer, first: int, last: int) -> list[float]:
    losses = []
    for i in range(first, last):
        x, y = batch(i, next(model.parameters()).dtype)

        def closure(x=x, y=y):
            loss = (model(x) - y).square().mean()
            loss.backward()
            return loss

        optimizer.zero_grad()
        losses.append(optimizer.step(closure).item())
    optimizer.zero_grad()
    return losses


def same(one: nn.Module, other: nn.Module, tolerance: float = 1e-10) -> None:
    for a, b in zip(dense_of(one), dense_of(other), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# Cores alone may well fall to the least rank.
@pytest.mark.filterwarnings("ignore:all 2 layers have fallen")
@pytest.mark.parametrize("rank_rule", RANK_RULES, ids=repr)
@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("integrator", ONE_BACKWARD[1:], ids=repr)
def test_every_rule_trains_with_every_integrator_of_one_backward(integrator, rule, rank_rule):
    model = thin_layers()
    optimizer = Optimizer(model, lr=1e-2, rule=rule, rank_rule=rank_rule, integrator=integrator)
    losses = train(model, optimizer, 0, 120)
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])
    for _, layer in optimizer.layers:
        assert orthonormality_defect(layer.U.detach()) < 1e-12
        assert orthonormality_defect(layer.V.detach()) < 1e-12


@pytest.mark.parametrize("integrator", SEVERAL, ids=repr)
def test_integrators_of_several_passes_train_by_a_closure(integrator):
    model = thin_layers()
    optimizer = Optimizer(model, lr=3e-2, rule=SGD(), integrator=integrator, max_step=INF)
    losses = train_by_closure(model, optimizer, 0, 200)
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])


@pytest.mark.parametrize("integrator", [AugmentedBUG(), AugmentedPSI(), CheckedBUG(1e-6)], ids=repr)
def test_one_backward_gives_the_iterates_of_the_closure_form(integrator):
    one, other = thin_layers(), thin_layers()
    fast = Optimizer(one, lr=3e-2, rule=SGD(), integrator=integrator, max_step=INF)
    oracle = Reevaluated(integrator)
    slow = Optimizer(other, lr=3e-2, rule=SGD(), integrator=oracle, max_step=INF)
    train(one, fast, 0, 20)
    train_by_closure(other, slow, 0, 20)
    same(one, other)


@pytest.mark.parametrize("integrator", [AugmentedBUG(), AugmentedPSI()], ids=repr)
def test_accumulated_batches_count_as_one(integrator):
    one, other = thin_layers(), thin_layers()
    optimizers = [
        Optimizer(m, lr=3e-2, rule=SGD(), integrator=integrator, max_step=INF) for m in (one, other)
    ]
    for i in range(5):
        x, y = batch(i)
        for model, optimizer, parts in zip((one, other), optimizers, (1, 4), strict=True):
            optimizer.zero_grad()
            for part in torch.arange(16).chunk(parts):
                ((model(x[part]) - y[part]).square().mean() / parts).backward()
            optimizer.step()
    same(one, other)


@pytest.mark.parametrize("integrator", [AugmentedBUG(), AugmentedPSI()], ids=repr)
def test_a_clipped_gradient_is_clipped_at_all_points(integrator):
    """Clipping to a fraction of the norm is a step of that fraction of the rate."""
    one, other = thin_layers(), thin_layers()
    clipped = Optimizer(one, lr=3e-2, rule=SGD(), integrator=integrator, max_step=INF)
    x, y = batch(0)
    (one(x) - y).square().mean().backward()
    norm = float(clipped.gradient_norm())
    clipped.clip_gradient_(norm / 10)
    clipped.step()
    train(other, Optimizer(other, lr=3e-3, rule=SGD(), integrator=integrator, max_step=INF), 0, 1)
    same(one, other)


@pytest.mark.parametrize("rule", [HeavyBall(0.0), Adam(power=0.0, spectrum=1.0, betas=(0.0, 0.9))])
def test_a_rule_without_memory_adds_what_is_new_as_it_is(rule):
    """At full rank nothing is beyond the tangent space; at low rank it is the gradient's own."""
    one, other = thin_layers(), thin_layers()
    integrator = AugmentedBUG()
    train(one, Optimizer(one, lr=1e-2, rule=rule, integrator=integrator, max_step=INF), 0, 1)
    plain = Optimizer(other, lr=1e-2, rule=SGD(), integrator=integrator, max_step=INF)
    train(other, plain, 0, 1)
    for a, b in zip(dense_of(one), dense_of(other), strict=True):
        torch.testing.assert_close(a / a.norm(), b / b.norm(), rtol=1e-9, atol=1e-9)


def test_a_gradient_that_is_not_that_of_the_batches_is_refused():
    model = thin_layers()
    optimizer = Optimizer(model, rule=SGD(), integrator=AugmentedBUG())
    x, y = batch(0)
    (model(x) - y).square().mean().backward()
    layer = optimizer.layers[0].layer
    layer.U.grad.add_(torch.ones_like(layer.U.grad))
    with pytest.raises(ValueError, match="not that of its last backward passes"):
        optimizer.step()


@pytest.mark.parametrize("size", [1e-30, 1e-15, 1e15])
def test_gradients_of_any_size_are_recognised(size):
    model = thin_layers(torch.float32)
    optimizer = Optimizer(model, integrator=AugmentedBUG())
    x, y = batch(0, torch.float32)
    (size * (model(x) - y).square().mean()).backward()
    optimizer.step()
    assert (optimizer.steps, optimizer.skipped) == (1, 0)
    for p in model.parameters():
        assert bool(p.isfinite().all())


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_nearest_multiple_is_found_whatever_its_size(scale, draw):
    a = torch.randn(5, 3, generator=draw)
    factor, defect = nearest_multiple(a, scale * a)
    assert float(factor) == pytest.approx(scale, rel=1e-5)
    assert defect < 1e-5
    assert nearest_multiple(a, torch.randn(5, 3, generator=draw))[1] > 0.5
    assert nearest_multiple(a, torch.zeros(5, 3)) == (0.0, 0.0)


def test_what_needs_a_closure_says_so():
    model = thin_layers()
    optimizer = Optimizer(model, rule=SGD(), integrator=BUG())
    with pytest.raises(ValueError, match="call `step\\(closure\\)`"):
        optimizer.step()
    x, y = batch(0)
    (model(x) - y).square().mean().backward()
    with pytest.raises(ValueError, match="Accumulate inside the closure"):
        optimizer.step(lambda: None)


def test_a_closure_that_clears_first_is_called_step_after_step():
    """As torch documents closures; and a skipped step leaves nothing behind either."""
    model, twin = thin_layers(), thin_layers()
    optimizer = Optimizer(model, lr=3e-2, rule=SGD(), integrator=BUG(), max_step=INF)
    other = Optimizer(twin, lr=3e-2, rule=SGD(), integrator=BUG(), max_step=INF)
    head = twin[4].weight.detach().clone()

    def closure(i: int, factor: float = 1.0):
        optimizer.zero_grad()
        x, y = batch(i)
        loss = factor * (model(x) - y).square().mean()
        loss.backward()
        return loss

    optimizer.step(lambda: closure(0, float("nan")))
    losses = [optimizer.step(lambda i=i: closure(i)).item() for i in range(3)]
    assert (optimizer.steps, optimizer.skipped) == (3, 1)
    assert losses == train_by_closure(twin, other, 0, 3)
    same(model, twin)
    assert not torch.equal(twin[4].weight, head)


def test_dropout_is_refused_where_the_model_runs_again():
    model = nn.Sequential(thin_layers(), nn.Dropout(0.1))
    optimizer = Optimizer(model, rule=SGD(), integrator=BUG())
    with pytest.raises(ValueError, match="dropout layer '1' is active"):
        train_by_closure(model, optimizer, 0, 1)
    model.eval()
    train_by_closure(model, optimizer, 0, 1)


@pytest.mark.parametrize("rule", RULES[1:], ids=repr)
def test_moments_and_several_matrices_do_not_go_together(rule):
    with pytest.raises(ValueError, match="use `rule=rankwise.SGD\\(\\)`"):
        Optimizer(thin_layers(), rule=rule, integrator=BUG())


def test_a_non_finite_gradient_at_a_later_point_leaves_the_model_as_it_was():
    model = thin_layers()
    optimizer = Optimizer(model, rule=SGD(), integrator=BUG())
    before, calls = copy.deepcopy(model.state_dict()), []
    x, y = batch(0)

    def closure():
        calls.append(1)
        loss = (model(x) - y).square().mean() * (float("nan") if len(calls) == 2 else 1.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert (optimizer.skipped, optimizer.steps, len(calls)) == (1, 0, 2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_an_error_inside_the_closure_leaves_the_model_as_it_was():
    model = thin_layers()
    optimizer = Optimizer(model, rule=SGD(), integrator=ProjectorSplitting())
    before, calls = copy.deepcopy(model.state_dict()), []
    x, y = batch(0)

    def closure():
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_between_its_basis_steps_bases_span_the_same_space_and_in_the_end_rest():
    model = thin_layers()
    integrator = BasisEvery(ParallelBUG(), every=3, until=7)
    optimizer = Optimizer(model, lr=1e-2, rule=SGD(), integrator=integrator, max_step=INF)
    turned = []
    for i in range(12):
        spaces = [m.U.detach() @ m.U.detach().T for m in model if isinstance(m, LowRankLinear)]
        train(model, optimizer, i, i + 1)
        after = [m.U.detach() @ m.U.detach().T for m in model if isinstance(m, LowRankLinear)]
        turned.append(any((a - b).norm() > 1e-9 for a, b in zip(spaces, after, strict=True)))
    assert turned == [True, False, False] * 2 + [True] + [False] * 5


@pytest.mark.parametrize("wrong", [{"every": 0}, {"until": 0}])
def test_basis_every_refuses_what_makes_no_sense(wrong):
    with pytest.raises(ValueError, match="at least 1 step"):
        BasisEvery(ParallelBUG(), **wrong)
    with pytest.raises(TypeError, match="must be an integrator"):
        BasisEvery(ParallelBUG)


class Images(nn.Sequential):
    """A low-rank convolution with stride and padding, then a low-rank map; nothing is frozen."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        like = torch.empty(0, dtype=torch.float64)
        kernel = variance_preserving(5, 8, 2, generator=draw, like=like)
        weight = variance_preserving(4, 20, 2, generator=draw, like=like)
        super().__init__(
            LowRankConv2d(kernel, 2, stride=2, padding=1, bias=torch.zeros(5, dtype=torch.float64)),
            nn.Tanh(),
            nn.Flatten(),
            LowRankLinear(weight),
        )


def learn_images(model: nn.Module, optimizer: Optimizer, steps: int) -> list[float]:
    losses = []
    for i in range(steps):
        draw = torch.Generator().manual_seed(i)
        x = torch.randn(16, 2, 2, 2, generator=draw, dtype=torch.float64)
        y = x.flatten(1)[:, :4]

        def closure(x=x, y=y):
            loss = (model(x) - y).square().mean()
            loss.backward()
            return loss.detach()

        optimizer.zero_grad()
        losses.append(float(optimizer.step(closure)))
    return losses


@pytest.mark.parametrize("integrator", [AugmentedBUG(), AugmentedPSI(), CheckedBUG(1e-6)], ids=repr)
def test_patches_of_a_convolution_are_rows_like_any_other(integrator):
    one, other = Images(), Images()
    options = {"lr": 3e-2, "rule": SGD(), "max_step": INF}
    learn_images(one, Optimizer(one, integrator=integrator, **options), 10)
    learn_images(other, Optimizer(other, integrator=Reevaluated(integrator), **options), 10)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert a.shape == b.shape
    for k in (0, 3):
        torch.testing.assert_close(
            one[k].factors().dense(), other[k].factors().dense(), rtol=1e-10, atol=1e-10
        )


def test_from_scratch_a_budget_is_kept_and_the_network_learns():
    model = Images()
    optimizer = Optimizer(model, lr=0.05, max_step=0.02, rank_rule=Budget(parameters=70, every=10))
    losses = learn_images(model, optimizer, 300)
    assert sum(losses[-30:]) < 0.9 * sum(losses[:30])
    assert sum(layer.rank * (sum(layer.shape) + 1) for _, layer in optimizer.layers) <= 70


def test_a_budget_does_not_compare_adapters_with_whole_weights():
    mixed = nn.Sequential(thin_layers(), Images())
    with pytest.raises(ValueError, match="cannot compare adapters with layers that are low rank"):
        Optimizer(mixed, rank_rule=Budget(parameters=60))
    Optimizer(mixed, rank_rule=Tolerance())


class Shared(nn.Module):
    """The same factored layer twice in one forward pass, called by name the second time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = adapter(6, 6, 2)

    def forward(self, x):
        return self.layer(x=self.layer(x).tanh())[:, :2]


@pytest.mark.parametrize("integrator", [AugmentedBUG(), AugmentedPSI()], ids=repr)
def test_a_layer_that_is_used_twice_counts_both_uses(integrator):
    torch.manual_seed(0)
    one = Shared()
    other = copy.deepcopy(one)
    fast = Optimizer(one, lr=3e-2, rule=SGD(), integrator=integrator, max_step=INF)
    oracle = Reevaluated(integrator)
    slow = Optimizer(other, lr=3e-2, rule=SGD(), integrator=oracle, max_step=INF)
    train(one, fast, 0, 10)
    train_by_closure(other, slow, 0, 10)
    same(one, other)


def test_passes_without_a_step_are_forgotten_with_their_gradients():
    one, other = thin_layers(), thin_layers()
    for model, wasted in ((one, 0), (other, 3)):
        optimizer = Optimizer(model, lr=3e-2, rule=SGD(), integrator=AugmentedBUG(), max_step=INF)
        for i in range(wasted):
            x, y = batch(50 + i)
            (model(x) - y).square().mean().backward()
        train(model, optimizer, 0, 3)
    same(one, other)


def test_a_copy_of_the_model_and_a_dropped_optimizer_leave_nothing_behind():
    model = thin_layers()
    optimizer = Optimizer(model, rule=SGD(), integrator=AugmentedBUG())
    double = copy.deepcopy(model)
    x, y = batch(0)
    (double(x) - y).square().mean().backward()
    assert not any(optimizer._batches._pairs.values())
    hooks = [len(layer._forward_hooks) for _, layer in optimizer.layers]
    del optimizer
    gc.collect()
    assert hooks == [1, 1]
    assert [len(m._forward_hooks) for m in model if isinstance(m, LowRankLinear)] == [0, 0]


@pytest.mark.parametrize("integrator", [AugmentedBUG(), AugmentedPSI(), CheckedBUG()], ids=repr)
def test_autocast_and_checkpointed_passes_are_recognised(integrator):
    model = thin_layers(torch.float32)
    optimizer = Optimizer(model, lr=1e-2, integrator=integrator)
    losses = []
    for i in range(100):
        x, y = batch(i, torch.float32)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            hidden = torch.utils.checkpoint.checkpoint(model[:4], x, use_reentrant=False)
            loss = (model[4](hidden).float() - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < 0.95 * sum(losses[:20])


def test_a_state_dict_belongs_to_its_integrator():
    model = thin_layers()
    saved = Optimizer(model, integrator=AugmentedBUG()).state_dict()
    with pytest.raises(ValueError, match="with integrator AugmentedBUG, this one has ParallelBUG"):
        Optimizer(model).load_state_dict(saved)
