"""The optimizer as a user meets it."""

import copy

import pytest
import torch
from torch import Tensor, nn

from networks import adapter, batch, dense_of, thin_layers, train
from rankwise.integrators.augmented_bug import AugmentedBUG
from rankwise.integrators.parallel_bug import ParallelBUG
from rankwise.nn import LowRankLinear
from rankwise.numerics.factors import Factors, orthonormality_defect
from rankwise.numerics.init import truncated_svd, zero_core
from rankwise.numerics.retract import truncate
from rankwise.numerics.tangent import Tangent
from rankwise.optim.adam import Adam
from rankwise.optim.budget import Budget
from rankwise.optim.optimizer import Optimizer
from rankwise.optim.rank_rule import FixedRank
from rankwise.optim.spectral import Spectral
from rankwise.optim.tolerance import Tolerance
from rankwise.optim.update_rule import SGD, HeavyBall

RULES = [SGD(), HeavyBall(), Adam(), Spectral()]
RANK_RULES = [FixedRank(), Tolerance(every=4, grow=2), Budget(parameters=60, every=4, grow=2)]


@pytest.mark.parametrize("rank_rule", RANK_RULES, ids=repr)
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_training_reduces_the_loss_and_keeps_the_bases_orthonormal(rule, rank_rule):
    model = thin_layers()
    optimizer = Optimizer(model, lr=1e-2, rule=rule, rank_rule=rank_rule)
    losses = train(model, optimizer, 0, 200)
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    for _, layer in optimizer.layers:
        assert orthonormality_defect(layer.U.detach()) < 1e-12
        assert orthonormality_defect(layer.V.detach()) < 1e-12


@pytest.mark.parametrize("rank_rule", RANK_RULES, ids=repr)
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_zero_rate_changes_no_function_whatever_the_ranks_do(rule, rank_rule):
    model = thin_layers()
    train(model, Optimizer(model, lr=1e-2), 0, 3)
    x, before = batch(0)[0], dense_of(model)
    expected = model(x)
    train(model, Optimizer(model, lr=0.0, rule=rule, rank_rule=rank_rule), 0, 3)
    torch.testing.assert_close(model(x), expected)
    for one, other in zip(before, dense_of(model), strict=True):
        torch.testing.assert_close(one, other)


def test_at_full_rank_sgd_is_gradient_descent_on_the_weight():
    W = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dense = nn.Linear(4, 5, bias=False, dtype=torch.float64)
    dense.weight.data.copy_(W)
    low = LowRankLinear(truncated_svd(W, 4))
    theirs = torch.optim.SGD(dense.parameters(), lr=0.05, momentum=0.9)
    ours = Optimizer(low, lr=0.05, rule=HeavyBall(0.9), max_step=float("inf"))
    x = torch.randn(16, 4, dtype=torch.float64)
    for _ in range(5):
        for model, optimizer in ((dense, theirs), (low, ours)):
            optimizer.zero_grad()
            model(x).sin().square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(low.factors().dense(), dense.weight.detach())


def test_dense_parameters_take_exactly_torch_adamw():
    model, twin = nn.Linear(6, 2), nn.Linear(6, 2)
    twin.load_state_dict(model.state_dict())
    ours = Optimizer(model, lr=1e-2, weight_decay=0.1)
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.1)
    train(model, ours, 0, 5)
    train(twin, theirs, 0, 5)
    assert torch.equal(model.weight, twin.weight) and torch.equal(model.bias, twin.bias)


def test_weight_decay_shrinks_the_product_and_leaves_the_bases():
    layer = LowRankLinear(truncated_svd(torch.randn(6, 5, dtype=torch.float64), 3))
    optimizer = Optimizer(layer, lr=0.1, weight_decay=0.5, rule=SGD())
    before = layer.factors().dense().clone()
    (0 * layer(torch.ones(1, 5, dtype=torch.float64)).sum()).backward()
    optimizer.step()
    torch.testing.assert_close(layer.factors().dense(), before * (1 - 0.1 * 0.5))
    assert orthonormality_defect(layer.U.detach()) < 1e-12


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200])
def test_a_step_with_a_non_finite_gradient_is_skipped_and_counted(bad):
    model = thin_layers()
    optimizer = Optimizer(model, lr=1e-2)
    train(model, optimizer, 0, 2)
    before = copy.deepcopy(model.state_dict())
    x, _ = batch(0)
    (model(x).sum() * bad).backward()
    optimizer.step()
    assert (optimizer.steps, optimizer.skipped) == (2, 1)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(map(torch.isfinite, map(torch.tensor, train(model, optimizer, 2, 4))))


@pytest.mark.parametrize("rank_rule", RANK_RULES, ids=repr)
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_saved_optimizer_continues_exactly_after_ranks_changed(rule, rank_rule):
    def fresh() -> tuple[nn.Module, Optimizer]:
        model = thin_layers()
        return model, Optimizer(model, lr=1e-2, rule=rule, rank_rule=rank_rule)

    model, optimizer = fresh()
    train(model, optimizer, 0, 9)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    expected = train(model, optimizer, 9, 20)
    again, continued = fresh()
    again.load_state_dict(saved[0])
    continued.load_state_dict(saved[1])
    assert train(again, continued, 9, 20) == expected
    for one, other in zip(dense_of(model), dense_of(again), strict=True):
        assert torch.equal(one, other)


def test_parameters_and_moments_shrink_when_ranks_do():
    model = thin_layers()
    optimizer = Optimizer(model, lr=1e-2, rank_rule=Budget(parameters=1, every=4, grow=0))

    def numbers() -> int:
        factors = [p for _, layer in optimizer.layers for p in (layer.U, layer.S, layer.V)]
        moments = [t for p in factors for t in optimizer.state[p].get("momentum", ())]
        return sum(t.numel() for t in factors + moments)

    train(model, optimizer, 0, 3)
    before = numbers()
    train(model, optimizer, 3, 5)
    assert [layer.rank for _, layer in optimizer.layers] == [1, 1]
    assert numbers() < before / 2


def test_no_step_is_longer_than_the_trust_region_and_the_schedule_keeps_its_shape():
    model = thin_layers()
    optimizer = Optimizer(model, lr=1e3, max_step=0.01, turns=1)
    lengths = []
    for i, rate in enumerate((1e3, 1e2)):
        optimizer.param_groups[0]["lr"] = rate
        before = dense_of(model)[0]
        train(model, optimizer, i, i + 1)
        lengths.append((dense_of(model)[0] - before).norm() / model[0].base.weight.norm())
    assert lengths[0] <= 0.01 * (1 + 1e-9)
    assert lengths[1] <= 0.001 * (1 + 1e-9)
    assert lengths[1] > 0.0005


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_step_of_adam_is_relative_to_the_weight_in_its_layer_whatever_the_scale(size, scale):
    layer = adapter(8, 6, 3)
    layer = LowRankLinear(layer.factors(), base=layer.base, scale=scale)
    with torch.no_grad():
        layer.base.weight.mul_(size)
    optimizer = Optimizer(layer, lr=1e-3, rule=Adam(power=0.0, spectrum=1.0))
    layer(batch(0)[0]).square().sum().backward()
    before = layer.factors().dense()
    sigma = torch.linalg.svdvals(Tangent(*layer.gradient()).dense(layer.factors()))
    optimizer.step()
    moved = scale * (layer.factors().dense() - before)
    # The first step is the normalised gradient of rank 6 at most, cut to rank 3.
    expected = 1e-3 * layer.base.weight.norm() * sigma[:3].norm() / sigma.norm()
    torch.testing.assert_close(moved.norm(), expected)


def test_without_a_base_steps_are_relative_to_a_map_that_preserves_variance():
    draw = torch.Generator().manual_seed(0)
    like = torch.empty(0, dtype=torch.float64)
    layer = LowRankLinear(zero_core(9, 6, 6, like=like, generator=draw))
    optimizer = Optimizer(layer, lr=1e-3, rule=Adam(power=0.0, spectrum=1.0))
    layer(batch(0)[0]).sum().backward()
    optimizer.step()
    assert float(layer.S.detach().norm()) == pytest.approx(1e-3 * 9**0.5)


def test_clipping_uses_the_norm_of_the_tangent_gradient():
    model = nn.Sequential(adapter(8, 6, 2))
    optimizer = Optimizer(model)
    x, _ = batch(0)
    y = model(x)
    dy = torch.randn_like(y)
    (y * dy).sum().backward()
    f, G = model[0].factors(), dy.mT @ x
    projected = f.U @ f.U.mT @ G + G @ f.V @ f.V.mT - f.U @ f.U.mT @ G @ f.V @ f.V.mT
    torch.testing.assert_close(optimizer.gradient_norm(), projected.norm())
    torch.testing.assert_close(optimizer.clip_gradient_(0.1), projected.norm())
    torch.testing.assert_close(optimizer.gradient_norm(), torch.tensor(0.1, dtype=torch.float64))


def test_accumulated_gradients_are_those_of_the_whole_batch():
    whole, parts = thin_layers(), thin_layers()
    x, y = batch(0)
    for model, chunks in ((whole, 1), (parts, 4)):
        optimizer = Optimizer(model, lr=1e-2)
        for a, b in zip(x.chunk(chunks), y.chunk(chunks), strict=True):
            ((model(a) - b).square().mean() / chunks).backward()
        optimizer.step()
    for one, other in zip(dense_of(whole), dense_of(parts), strict=True):
        torch.testing.assert_close(one, other)


def test_closures_schedulers_and_groups_work_as_in_torch():
    model = thin_layers()
    optimizer = Optimizer(model, lr=1e-2, groups=[{"params": "4", "lr": 5e-2}])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    x, y = batch(0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    scheduler.step()
    assert first > optimizer.step(closure)
    assert [group["lr"] for group in optimizer.param_groups] == [2.5e-2, 5e-3]


def test_orthonormality_holds_over_a_thousand_float32_steps_with_bfloat16_products():
    model = thin_layers(torch.float32)
    optimizer = Optimizer(model, lr=1e-2, rank_rule=Tolerance(every=10, grow=2))
    for i in range(1000):
        x, y = batch(i, torch.float32)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    for _, layer in optimizer.layers:
        assert orthonormality_defect(layer.U.detach()) < 1e-5
        assert orthonormality_defect(layer.V.detach()) < 1e-5


def test_ranks_recover_that_of_the_target_from_below_and_above():
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, 5, generator=draw, dtype=torch.float64) for size in (30, 40))
    target = left @ right.mT / 10
    for start in (2, 20):
        layer = adapter(30, 40, start)
        optimizer = Optimizer(layer, lr=3e-2, rank_rule=Tolerance(rtol=0.05, every=10))
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 400)
        for _ in range(400):
            x = torch.randn(64, 40, generator=draw, dtype=torch.float64)
            optimizer.zero_grad()
            (layer(x) - layer.base(x) - x @ target.mT).square().mean().backward()
            optimizer.step()
            scheduler.step()
        assert layer.rank == 5


def test_a_newer_optimizer_takes_over_and_the_older_refuses():
    model = thin_layers()
    older = Optimizer(model)
    newer = Optimizer(model)
    train(model, newer, 0, 1)
    with pytest.raises(ValueError, match="layer '0' belongs to an optimizer that was made later"):
        train(model, older, 1, 2)


def test_factors_written_by_something_else_are_found_out():
    model = thin_layers()
    ours = Optimizer(model, lr=1e-2)
    train(model, ours, 0, 1)
    with torch.no_grad():
        model[0].U.mul_(0.9)
    with pytest.raises(ValueError, match="not orthonormal"):
        train(model, ours, 1, 2)


@pytest.mark.parametrize("integrator", [ParallelBUG(), AugmentedBUG()], ids=repr)
def test_a_copy_of_model_and_optimizer_trains_on_as_they_do(integrator):
    model = thin_layers()
    rank_rule = Tolerance(every=4, grow=2)
    optimizer = Optimizer(model, lr=1e-2, rank_rule=rank_rule, integrator=integrator)
    train(model, optimizer, 0, 5)
    copied, continued = copy.deepcopy((model, optimizer))
    assert (continued.steps, continued.rank_rule) == (5, rank_rule)
    assert train(copied, continued, 5, 12) == train(model, optimizer, 5, 12)
    assert optimizer.steps == continued.steps == 12
    for one, other in zip(dense_of(model), dense_of(copied), strict=True):
        assert torch.equal(one, other)


def test_a_copy_of_the_optimizer_alone_leaves_the_model_alone():
    model = thin_layers()
    optimizer = Optimizer(model, lr=1e-2)
    losses = train(model, optimizer, 0, 2)
    before = dense_of(model)
    copied = copy.deepcopy(optimizer)
    train(copied._model, copied, 2, 4)
    assert all(torch.equal(a, b) for a, b in zip(before, dense_of(model), strict=True))
    assert len(losses + train(model, optimizer, 2, 4)) == 4


def test_factors_of_another_rank_that_are_no_bases_are_found_out():
    model = thin_layers()
    ours = Optimizer(model, lr=1e-2)
    train(model, ours, 0, 1)
    layer = model[0]
    assert isinstance(layer, LowRankLinear)
    U, S, V = (2.0 * t for t in truncate(layer.factors(), 1))
    layer.set_factors_(Factors(U, S, V))
    with pytest.raises(ValueError, match="not orthonormal"):
        train(model, ours, 1, 2)


def test_what_is_not_a_model_or_a_rule_is_refused_with_what_to_write():
    model = thin_layers()
    with pytest.raises(TypeError, match="takes the model"):
        Optimizer(model.parameters())
    with pytest.raises(TypeError, match=r"an instance, `Adam\("):
        Optimizer(model, rule=Adam)
    with pytest.raises(TypeError, match="RankRule"):
        Optimizer(model, rank_rule="budget")
    with pytest.raises(ValueError, match="lr"):
        Optimizer(model, lr=-1.0)
    with pytest.raises(ValueError, match="max_step"):
        Optimizer(model, max_step=0.0)


def test_groups_are_checked():
    model = thin_layers()
    with pytest.raises(ValueError, match="no module or parameter named 'hed'"):
        Optimizer(model, groups=[{"params": "hed"}])
    with pytest.raises(ValueError, match="in group 0 and in group 1"):
        Optimizer(model, groups=[{"params": "4"}, {"params": "4.weight"}])
    with pytest.raises(ValueError, match="same group"):
        Optimizer(model, groups=[{"params": [model[0].S]}])
    with pytest.raises(ValueError, match="not in the model"):
        Optimizer(model, groups=[{"params": nn.Linear(2, 2)}])


def test_a_layer_that_trains_only_in_part_is_refused():
    model = thin_layers()
    model[0].S.requires_grad_(False)
    with pytest.raises(ValueError, match="layer '0' only U, V require gradients"):
        Optimizer(model)


def test_a_frozen_layer_and_one_outside_the_loss_are_left_alone():
    model = thin_layers()
    for p in model[2].parameters():
        p.requires_grad_(False)
    before = model[2].U.clone()
    optimizer = Optimizer(model, lr=1e-2)
    assert [name for name, _ in optimizer.layers] == ["0"]
    train(model, optimizer, 0, 2)
    assert torch.equal(model[2].U, before)


def test_state_of_another_rank_or_rule_is_refused():
    model = thin_layers()
    optimizer = Optimizer(model, lr=1e-2)
    train(model, optimizer, 0, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="rule Adam, this one has SGD"):
        Optimizer(model, rule=SGD()).load_state_dict(saved)
    with pytest.raises(ValueError, match="'rankwise'"):
        optimizer.load_state_dict(torch.optim.AdamW(model.parameters()).state_dict())
    f = model[0].factors()
    model[0].set_factors_(Factors(f.U[:, :1], f.S[:1, :1], f.V[:, :1]))
    with pytest.raises(ValueError, match="has rank 1, but the optimizer was saved with rank 2"):
        Optimizer(model).load_state_dict(saved)


def test_grad_scaler_skips_overflow_like_any_optimizer():
    model = thin_layers(torch.float32)
    optimizer = Optimizer(model, lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x, y = batch(0, torch.float32)
    before = dense_of(model)
    for factor in (float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale((model(x) - y).square().mean() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.steps == 1
    assert all((a - b).norm() > 0 for a, b in zip(before, dense_of(model), strict=True))


def test_a_parameter_beside_the_model_trains_too():
    model = thin_layers()
    optimizer = Optimizer(model)
    temperature = torch.nn.Parameter(torch.ones(()))
    optimizer.add_param_group({"params": [temperature]})
    x, y = batch(0)
    (temperature * (model(x) - y).square().mean()).backward()
    optimizer.step()
    assert temperature != 1.0


def test_a_dense_model_is_looked_at_once(monkeypatch):
    model = nn.Linear(3, 2)
    optimizer = Optimizer(model)
    looks = []
    walk = model.named_parameters
    monkeypatch.setattr(model, "named_parameters", lambda *a, **k: looks.append(1) or walk(*a, **k))
    counts = []
    for _ in range(3):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        counts.append(len(looks))
    assert counts[0] == counts[2] > 0
