"""Steps without a rate: the formula, what it does not depend on, and where it ends."""

import copy

import pytest
import torch
from torch import nn

from cases import SPECTRA, close, factors, matrix
from networks import adapter, batch, dense_of, thin_layers, train
from rankwise.integrators import (
    BUG,
    AugmentedBUG,
    AugmentedPSI,
    CheckedBUG,
    ProjectorSplitting,
)
from rankwise.nn import LowRankLinear
from rankwise.numerics.factors import Factors, distance
from rankwise.optim.adam import Adam
from rankwise.optim.optimizer import Optimizer
from rankwise.optim.rate_free import RateFree
from rankwise.optim.spectral import Spectral
from rankwise.optim.tolerance import TailTolerance, Tolerance
from rankwise.optim.update_rule import SGD, HeavyBall

RULES = [SGD(), HeavyBall(), Adam(), Spectral()]


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("ranks", [(1, 3), (3, 3), (5, 2)])
def test_the_distance_of_two_factorisations_is_that_of_the_matrices(ranks, spectrum, draw):
    a, b = (factors(7, 5, SPECTRA[spectrum](r), draw) for r in ranks)
    close(distance(a, b), (a.dense() - b.dense()).norm(), 1e-10)
    close(distance(a, b), distance(b, a), 1e-12)
    assert distance(a, a) < 1e-14


def test_a_short_way_is_not_lost_to_rounding(draw):
    """In float32, where the difference of squares would be zero."""
    f = factors(50, 30, torch.linspace(2, 1, 8, dtype=torch.float64), draw)
    single = Factors(*(t.float() for t in f))
    near = single._replace(S=single.S * (1 + 1e-5))
    torch.testing.assert_close(distance(near, single), 1e-5 * single.S.norm(), rtol=0.02, atol=0.0)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_the_first_step_is_as_long_as_it_was_told(rule, draw):
    """At full rank nothing is cut, so that the way of the weight is the step."""
    layer = LowRankLinear(factors(6, 6, SPECTRA["generic"](6), draw))
    before = layer.factors().dense().clone()
    optimizer = Optimizer(layer, rule=rule, control=RateFree(start=0.01))
    layer(torch.eye(6, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    way = (layer.factors().dense() - before).norm()
    close(way, torch.tensor(0.01 * 6**0.5, dtype=torch.float64), 1e-10)


def test_every_step_follows_the_formula(draw):
    layer = LowRankLinear(factors(6, 6, SPECTRA["generic"](6), draw))
    target = matrix(6, 6, SPECTRA["generic"](6), draw)
    optimizer = Optimizer(layer, rule=SGD(), control=RateFree(start=0.01, growth=0.5))
    W0 = W = layer.factors().dense().clone()
    size, farthest, squares, grown = 6**0.5, 0.01, 0.0, 0
    for _ in range(40):
        optimizer.zero_grad()
        (0.5 * (layer(torch.eye(6, dtype=torch.float64)).mT - target).square().sum()).backward()
        optimizer.step()
        G = W - target
        if (G * (W - W0)).sum() < 0:
            further = min(max(farthest, float((W - W0).norm()) / size), 1.5 * farthest)
            farthest, grown = further, grown + (further > farthest)
        squares += float(G.norm()) ** 2
        W = W - farthest * size / squares**0.5 * G
        close(layer.factors().dense(), W, 1e-7)
    assert grown > 3


def test_the_distance_never_grows_faster_than_it_may_and_never_shrinks():
    model = thin_layers()
    optimizer = Optimizer(model, control=RateFree(growth=0.2))
    seen = []
    for i in range(60):
        train(model, optimizer, i, i + 1)
        states = [optimizer.state[layer.U] for _, layer in optimizer.layers]
        (distance_gone,) = {float(state["farthest"]) for state in states}
        seen.append(distance_gone)
    ratios = [b / a for a, b in zip(seen, seen[1:], strict=False)]
    assert min(ratios) >= 1.0
    assert max(ratios) == pytest.approx(1.2)
    assert seen[-1] > 20 * seen[0]


def test_past_the_solution_the_distance_rests(draw):
    """Descent leads back to the start there, whatever the distance."""
    layer = LowRankLinear(factors(6, 6, SPECTRA["generic"](6), draw))
    optimizer = Optimizer(layer, rule=SGD(), control=RateFree())
    start, eye = layer.factors().dense().clone(), torch.eye(6, dtype=torch.float64)

    def step(target: torch.Tensor) -> float:
        optimizer.zero_grad()
        (0.5 * (layer(eye).mT - target).square().sum()).backward()
        optimizer.step()
        return float(optimizer.state[layer.U]["farthest"])

    away = start + matrix(6, 6, SPECTRA["generic"](6), draw)
    out = [step(away) for _ in range(10)]
    back = [step(start) for _ in range(10)]
    assert out[-1] > out[1]
    assert set(back) == {out[-1]}


@pytest.mark.parametrize("rule", RULES[:3], ids=repr)
@pytest.mark.parametrize("size", [1e-3, 1e4])
def test_the_size_of_the_loss_does_not_matter(rule, size):
    """A flat direction (Spectral) leaves equal singular values, of which rounding chooses."""
    ends = []
    for factor in (1.0, size):
        model = thin_layers()
        # The eps of AdamW, for dense parameters, is absolute.
        model[4].requires_grad_(False)
        optimizer = Optimizer(model, rule=rule, control=RateFree())
        for i in range(8):
            x, y = batch(i)
            optimizer.zero_grad()
            (factor * (model(x) - y).square().mean()).backward()
            optimizer.step()
        ends.append(dense_of(model))
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("start", [1e-5, 1e-3, 1e-2, 0.3])
def test_a_convex_problem_is_solved_from_any_assumed_distance(start, draw):
    target = matrix(12, 9, torch.linspace(2, 1, 3, dtype=torch.float64), draw)
    base = nn.Linear(9, 12, bias=False).double()
    layer = adapter(12, 9, 3)
    layer.base.load_state_dict(base.state_dict() | {"bias": torch.zeros(12)})
    optimizer = Optimizer(layer, rule=SGD(), control=RateFree(start=start))
    losses, eye = [], torch.eye(9, dtype=torch.float64)
    for _ in range(400):
        optimizer.zero_grad()
        loss = 0.5 * (layer(eye).mT - base(eye).mT.detach() - target).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-3 * losses[0]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_network_learns_with_every_rule(rule):
    model = thin_layers()
    losses = train(model, Optimizer(model, rule=rule, control=RateFree()), 0, 300)
    assert sum(losses[-30:]) < 0.8 * sum(losses[:30])


INTEGRATORS = [AugmentedBUG(), AugmentedPSI(), CheckedBUG(1e-9), BUG(), ProjectorSplitting()]


@pytest.mark.parametrize("integrator", INTEGRATORS, ids=repr)
def test_integrators_of_several_points_learn_and_count_a_step_once(integrator):
    model = thin_layers()
    optimizer = Optimizer(model, rule=SGD(), integrator=integrator, control=RateFree())
    losses = []
    for i in range(150):
        x, y = batch(i)

        def closure(x=x, y=y):
            loss = (model(x) - y).square().mean()
            loss.backward()
            return loss.detach()

        losses.append(float(optimizer.step(closure)))
        optimizer.zero_grad()
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    assert {optimizer.state[layer.U]["taken"] for _, layer in optimizer.layers} == {150}


def test_dense_parameters_take_adamws_step_at_their_usual_rate():
    model, other = thin_layers(), thin_layers()
    optimizer = Optimizer(model, lr=7.0, control=RateFree(dense_lr=0.01))
    plain = torch.optim.AdamW(other[4].parameters(), 0.01, weight_decay=0.0)
    for i in range(10):
        train(model, optimizer, i, i + 1)
        for p, q in zip(model[4].parameters(), other[4].parameters(), strict=True):
            q.grad = p.grad.clone()
        plain.step()
        close(model[4].weight.detach(), other[4].weight.detach())


def test_the_size_of_lr_does_not_matter_its_course_does():
    models = [thin_layers() for _ in range(3)]
    for model, lr, decay in zip(models, (1.0, 5e-5, 1.0), (0.9, 0.9, 0.5), strict=True):
        optimizer = Optimizer(model, lr, control=RateFree())
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay)
        for i in range(8):
            train(model, optimizer, i, i + 1)
            schedule.step()
    one, small, fast = (dense_of(model) for model in models)
    for a, b, c in zip(one, small, fast, strict=True):
        close(a, b, 1e-9)
        assert (a - c).norm() > 1e-3 * a.norm()


def test_at_a_rate_of_zero_nothing_moves():
    model = thin_layers()
    optimizer = Optimizer(model, lr=0.0, control=RateFree())
    before, head = dense_of(model), model[4].weight.detach().clone()
    train(model, optimizer, 0, 3)
    for a, b in zip([*dense_of(model), model[4].weight], [*before, head], strict=True):
        close(a, b)


@pytest.mark.parametrize("integrator", INTEGRATORS[:3], ids=repr)
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_step_that_is_tried_again_is_no_longer_than_it_may_be(rule, integrator, draw):
    """The same for steps by a rate; at rank 6 of 6 nothing is cut, so that the way is the step."""
    for options, longest in (
        ({"control": RateFree(start=0.01)}, 0.01),
        ({"lr": 10.0, "max_step": 0.01}, 0.01),
    ):
        model = thin_layers()
        optimizer = Optimizer(
            model, rule=rule, integrator=integrator, rank_rule=TailTolerance(0.0), **options
        )
        size = [layer.base.weight.norm() for _, layer in optimizer.layers]
        train(model, optimizer, 0, 1)
        for way, norm in zip(dense_of(model), size, strict=True):
            assert way.norm() <= longest * norm * (1 + 1e-9)


@pytest.mark.parametrize("size", [1e-15, 1e15])
def test_one_gradient_of_extreme_size_does_not_end_training(size):
    model = thin_layers(torch.float32)
    optimizer = Optimizer(model, rule=SGD(), control=RateFree())
    x, y = batch(0, torch.float32)
    (size * (model(x) - y).square().mean()).backward()
    optimizer.step()
    for _, layer in optimizer.layers:
        assert bool(optimizer.state[layer.U]["root"].isfinite())
        assert optimizer.state[layer.U]["root"] > 0


def test_a_skipped_step_is_not_counted():
    model, calls = thin_layers(), []
    optimizer = Optimizer(model, rule=SGD(), integrator=BUG(), control=RateFree())
    x, y = batch(0)

    def closure():
        calls.append(1)
        loss = (model(x) - y).square().mean() * (float("nan") if len(calls) % 2 == 0 else 1.0)
        loss.backward()
        return loss

    roots = []
    for _ in range(3):
        optimizer.step(closure)
        roots.append(float(optimizer.state[optimizer.layers[0].layer.U]["root"]))
        optimizer.zero_grad()
    assert (optimizer.steps, optimizer.skipped) == (0, 3)
    assert len(set(roots)) == 1


@pytest.mark.parametrize("start", [1e-5, 1e-3])
def test_in_float32_the_distance_grows_from_a_start_that_is_not_zero(start, draw):
    f = factors(50, 30, torch.linspace(2, 1, 8, dtype=torch.float64), draw)
    target = matrix(50, 30, torch.linspace(2, 1, 8, dtype=torch.float64), draw)
    grown = []
    for dtype in (torch.float64, torch.float32):
        layer = LowRankLinear(Factors(*(t.to(dtype) for t in f)))
        optimizer = Optimizer(layer, rule=SGD(), control=RateFree(start=start))
        for _ in range(30):
            optimizer.zero_grad()
            (layer(torch.eye(30, dtype=dtype)).mT - target.to(dtype)).square().sum().backward()
            optimizer.step()
        grown.append(float(optimizer.state[layer.U]["farthest"]))
    assert grown[1] == pytest.approx(grown[0], rel=0.02)
    assert grown[0] > 5 * start


def test_without_a_gradient_nothing_moves_and_nothing_breaks():
    model = thin_layers()
    optimizer = Optimizer(model, control=RateFree())
    before = dense_of(model)
    x, _ = batch(0)
    (0.0 * model(x)).sum().backward()
    optimizer.step()
    for a, b in zip(dense_of(model), before, strict=True):
        close(a, b)
    losses = train(model, optimizer, 1, 200)
    assert sum(losses[-30:]) < 0.8 * sum(losses[:30])


def test_it_goes_on_exactly_from_a_state_dict_with_ranks_that_change():
    whole, parts = thin_layers(), thin_layers()
    rule = Tolerance(rtol=0.2, every=5, grow=1)
    train(whole, Optimizer(whole, rank_rule=rule, control=RateFree()), 0, 30)
    first = Optimizer(parts, rank_rule=rule, control=RateFree())
    train(parts, first, 0, 13)
    model, state = copy.deepcopy(parts), copy.deepcopy(first.state_dict())
    second = Optimizer(model, rank_rule=rule, control=RateFree())
    second.load_state_dict(state)
    train(model, second, 13, 30)
    for a, b in zip(dense_of(whole), dense_of(model), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["max_step", "weight_decay"])
def test_options_that_need_a_rate_are_refused(name):
    with pytest.raises(ValueError, match=f"`{name}=0.1` is for steps by a learning rate"):
        Optimizer(thin_layers(), control=RateFree(), **{name: 0.1})
    group = {"params": "4", name: 0.1}
    with pytest.raises(ValueError, match="leave it out"):
        Optimizer(thin_layers(), control=RateFree(), groups=[group])
    with pytest.raises(ValueError, match=r"take `RateFree\(dense_lr=...\)`"):
        Optimizer(thin_layers(), control=RateFree(), groups=[{"params": "4", "lr": 0.1}])


def test_what_makes_no_sense_is_refused():
    for start in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"`RateFree\(start=...\)` must be in \(0, 1\)"):
            RateFree(start)
    for name, value in (("growth", 0.0), ("dense_lr", -1.0), ("dense_lr", float("nan"))):
        with pytest.raises(ValueError, match=name):
            RateFree(**{name: value})
    with pytest.raises(TypeError, match=r"`Optimizer\(control=...\)` must be an instance"):
        Optimizer(thin_layers(), control=RateFree)
    saved = Optimizer(thin_layers(), control=RateFree()).state_dict()
    with pytest.raises(ValueError, match="with control RateFree, this one has Trust"):
        Optimizer(thin_layers()).load_state_dict(saved)
