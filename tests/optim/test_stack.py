"""Stacked layers take the steps that they take one by one; layers that take turns miss nothing."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from naming import told
from rankwise.integrators import BasisEvery, ParallelBUG
from rankwise.numerics.factors import orthonormality_defect
from rankwise.numerics.init import truncated_svd
from rankwise.numerics.tangent import project
from rankwise.optim.rank_rule import RankRule
from rankwise.optim.stack import columns_kept, filled
from rankwise.robust import SpreadPenalty

SHAPES = ((9, 9), (9, 9), (9, 9), (4, 9), (9, 4), (9, 4), (1, 9), (9, 9))
"""(out, in) of layers side by side; several can be stacked, one is a row."""
RANKS = (1, 3, 4, 2, 4, 1, 1, 9)


@dataclass(frozen=True)
class SGDAlone(rw.SGD):
    stackable: ClassVar[bool] = False


@dataclass(frozen=True)
class HeavyBallAlone(rw.HeavyBall):
    stackable: ClassVar[bool] = False


@dataclass(frozen=True)
class AdamAlone(rw.Adam):
    stackable: ClassVar[bool] = False


@dataclass(frozen=True)
class SpectralAlone(rw.Spectral):
    stackable: ClassVar[bool] = False


RULES = [
    (rw.SGD(), SGDAlone()),
    (rw.HeavyBall(), HeavyBallAlone()),
    (rw.Adam(), AdamAlone()),
    (rw.Spectral(), SpectralAlone()),
]


def side_by_side(*, adapters: bool) -> nn.Module:
    torch.manual_seed(5)
    layers = nn.ModuleList()
    for (m, n), rank in zip(SHAPES, RANKS, strict=True):
        W = torch.randn(m, n, dtype=torch.float64)
        base = nn.Linear(n, m, dtype=torch.float64) if adapters else None
        layers.append(rw.LowRankLinear(truncated_svd(W, rank), base=base))
    return layers


def gradients(model: nn.Module, step: int) -> None:
    """A pass through each layer: one target, other inputs in each step."""
    draw = torch.Generator().manual_seed(step)
    loss: Tensor = sum(
        (layer(torch.randn(12, layer.shape[1], dtype=torch.float64, generator=draw)) - 1)
        .square()
        .mean()
        for layer in model
    )  # type: ignore[assignment]
    loss.backward()


def matrices(model: nn.Module) -> Iterator[Tensor]:
    for layer in model:
        yield layer.factors().dense()


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("rule, alone", RULES, ids=told)
@pytest.mark.parametrize("adapters", [True, False])
def test_a_stacked_step_is_the_step_of_each_layer_alone(rule, alone, adapters, turns):
    options = {
        "lr": 1e-2,
        "weight_decay": 0.1,
        "turns": turns,
        "rank_rule": rw.Tolerance(rtol=0.2, every=4, grow=2),
        "conditioning": SpreadPenalty(0.1),
    }
    model = side_by_side(adapters=adapters)
    twin = copy.deepcopy(model)
    optimizers = [rw.Optimizer(m, rule=r, **options) for m, r in ((model, rule), (twin, alone))]
    ranks = set()
    for step in range(9):
        for m, optimizer in zip((model, twin), optimizers, strict=True):
            gradients(m, step)
            optimizer.step()
            optimizer.zero_grad()
        for W, expected in zip(matrices(model), matrices(twin), strict=True):
            torch.testing.assert_close(W, expected, rtol=1e-9, atol=1e-10)
        assert [layer.rank for layer in model] == [layer.rank for layer in twin]
        ranks.add(tuple(layer.rank for layer in model))
    assert len(ranks) > 2
    for layer in model:
        assert orthonormality_defect(layer.U.detach()) < 1e-12
        assert orthonormality_defect(layer.V.detach()) < 1e-12


def test_layers_without_a_gradient_or_with_a_zero_one_or_a_zero_core_are_no_trouble():
    model = side_by_side(adapters=True)
    model[1].set_factors_(model[1].factors().scaled(0.0))
    optimizer = rw.Optimizer(model, rank_rule=rw.Tolerance(rtol=0.2, every=4, grow=2))
    still = list(matrices(model))[2]
    for step in range(6):
        gradients(model, step)
        for p in model[2].factor_parameters():
            p.grad = None
        for p in model[3].factor_parameters():
            p.grad.zero_()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(list(matrices(model))[2], still)
    assert all(bool(W.isfinite().all()) for W in matrices(model))
    for layer in model:
        assert orthonormality_defect(layer.U.detach()) < 1e-12


def test_each_layer_moves_in_its_turn_and_all_where_ranks_may_change():
    model = side_by_side(adapters=True)
    optimizer = rw.Optimizer(model, turns=4, rank_rule=rw.Tolerance(rtol=0.0, every=10, grow=0))
    moved = []
    for step in range(1, 12):
        before = list(matrices(model))
        gradients(model, step)
        optimizer.step()
        optimizer.zero_grad()
        pairs = zip(before, matrices(model), strict=True)
        moved.append([not torch.equal(old, new) for old, new in pairs])
    for step, own in enumerate(moved, start=1):
        together = step in (1, 10, 11)
        assert own == [together or (step - 1 + place) % 4 == 0 for place in range(len(SHAPES))]


@dataclass(frozen=True)
class Most(RankRule):
    """A user's rule, which takes it for granted that there is a layer."""

    def may_change(self, clock) -> bool:
        return False

    def ranks(self, clock, layers):
        most = max(layer.rank for layer in layers)
        return [min(most, layer.rank) for layer in layers]


def test_where_it_is_no_layers_turn_no_rule_is_asked():
    model = side_by_side(adapters=True)[:1]
    optimizer = rw.Optimizer(model, turns=3, rank_rule=Most())
    moved = []
    for step in range(7):
        before = next(matrices(model))
        gradients(model, step)
        optimizer.step()
        optimizer.zero_grad()
        moved.append(not torch.equal(before, next(matrices(model))))
    assert moved == [True, False, False, True, False, False, True]


def test_a_turn_is_as_long_as_the_steps_since_the_last():
    """The first moment of one gradient that stays the same is that gradient, at any step."""
    ends = []
    for turns in (1, 3):
        model = side_by_side(adapters=True)
        optimizer = rw.Optimizer(model, lr=1e-6, turns=turns, max_step=float("inf"))
        draw = torch.Generator().manual_seed(1)
        G = [torch.randn(*layer.shape, dtype=torch.float64, generator=draw) for layer in model]
        start = list(matrices(model))
        for _ in range(7):
            for layer, own in zip(model, G, strict=True):
                layer.U.grad, layer.V.grad, layer.S.grad = project(layer.factors(), own)
            optimizer.step()
        pairs = zip(matrices(model), start, optimizer.layers, strict=True)
        waited = [optimizer.state[layer.U].get("waited", 0) for _, layer in optimizer.layers]
        steps = [7 - w for w in waited]
        ends.append([(W - W0).norm() / s for (W, W0, _), s in zip(pairs, steps, strict=True)])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=0.0)


def test_an_interrupted_turn_goes_on():
    model = side_by_side(adapters=True)
    optimizer = rw.Optimizer(model, turns=3)
    for step in range(5):
        gradients(model, step)
        optimizer.step()
        optimizer.zero_grad()
    twin = copy.deepcopy(model)
    other = rw.Optimizer(twin, turns=3)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(5, 9):
        for m, o in ((model, optimizer), (twin, other)):
            gradients(m, step)
            o.step()
            o.zero_grad()
    assert all(map(torch.equal, matrices(model), matrices(twin)))


@pytest.mark.parametrize("turns, error", [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_turns_are_steps(turns, error):
    with pytest.raises(error, match="turns"):
        rw.Optimizer(side_by_side(adapters=True), turns=turns)


def test_only_rules_that_remember_let_layers_wait():
    def turns(**options) -> int:
        return rw.Optimizer(side_by_side(adapters=True), **options).turns

    assert turns() == turns(rule=rw.Spectral()) == 2
    assert turns(rule=rw.SGD()) == turns(rule=rw.HeavyBall()) == 1
    assert turns(integrator=BasisEvery(ParallelBUG(), every=3)) == 1


def test_filling_up():
    parts = [torch.ones(2, 1), torch.ones(3, 2)]
    stack = filled(parts, (3, 2))
    assert stack.tolist() == [[[1, 0], [1, 0], [0, 0]], [[1, 1], [1, 1], [1, 1]]]
    assert columns_kept(torch.ones(2, 1, 3), [1, 3]).tolist() == [[[1, 0, 0]], [[1, 1, 1]]]
    assert torch.equal(filled(parts[1:], (3, 2)), parts[1][None])


def test_layers_of_other_types_side_by_side_share_a_rate_free_step():
    model = nn.ModuleList(nn.Linear(6, 6).to(t) for t in (torch.float32, torch.float64) * 2)
    rw.adapt_(model, rank=2)
    optimizer = rw.Optimizer(model, control=rw.RateFree())
    for _ in range(3):
        loss = sum(m(torch.randn(3, 6).to(m.U.dtype)).square().mean().double() for m in model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(bool(m.factors().norm() > 0) for m in model)


def test_a_rate_that_is_a_tensor_does_not_change_types():
    model = side_by_side(adapters=True).float()
    optimizer = rw.Optimizer(model, lr=torch.tensor(1e-3, dtype=torch.float64))
    sum(m(torch.randn(3, m.shape[1])).square().mean() for m in model).backward()
    optimizer.step()
    assert optimizer.steps == 1


def test_a_layer_that_is_never_in_a_pass_of_its_turn_moves_all_the_same():
    model = side_by_side(adapters=True)
    optimizer = rw.Optimizer(model, turns=2)
    start = list(matrices(model))
    for step in range(6):
        gradients(model[step % 2 :: 2], step)
        optimizer.step()
        optimizer.zero_grad()
    assert not any(map(torch.equal, start, matrices(model)))


@dataclass(frozen=True)
class UnitSteps(rw.SGD):
    """A user's rule, for single layers: it knows nothing of stacks."""

    def direction(self, f, gradient, state):
        state["count"] = state.get("count", 0) + 1
        size = gradient.squared_norm().sqrt()
        return gradient.like(*(t / size for t in gradient))


def test_a_users_rule_is_asked_for_single_layers():
    model = side_by_side(adapters=True)
    optimizer = rw.Optimizer(model, rule=UnitSteps(), lr=1e-2, max_step=float("inf"))
    for step in range(3):
        gradients(model, step)
        optimizer.step()
        optimizer.zero_grad()
    assert [optimizer.state[layer.U]["count"] for layer in model] == [3] * len(model)


def test_a_users_integrator_is_asked_for_single_layers():
    class Own(ParallelBUG):
        def stages(self, f, take=lambda core: core):
            assert f.S.ndim == 2
            return (yield from super().stages(f, take))

    model = side_by_side(adapters=True)
    optimizer = rw.Optimizer(model, integrator=Own())
    gradients(model, 0)
    optimizer.step()
    assert optimizer.steps == 1


def test_two_parts_must_not_both_choose_when_bases_move():
    with pytest.raises(ValueError, match="BasisEvery"):
        rw.Optimizer(
            side_by_side(adapters=True), turns=2, integrator=BasisEvery(ParallelBUG(), every=2)
        )
