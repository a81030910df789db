"""Rank rules by hand: when they grow, what they cut, what they refuse."""

import pytest
import torch

from rankwise.optim.budget import Budget
from rankwise.optim.rank_rule import Candidates, Clock, FixedRank
from rankwise.optim.tolerance import TailTolerance, Tolerance

SPECTRA = ([9.0, 4.0, 0.1, 0.0], [5.0, 3.0, 2.0, 0.05])
LAYERS = [Candidates(torch.tensor(s, dtype=torch.float64), 2, (10, 6)) for s in SPECTRA]
GROWN = [layer._replace(rank=4) for layer in LAYERS]
SUDDEN = 1e-9
COST = 10 + 6 + 1


def test_fixed_rank_keeps_what_there_is():
    assert FixedRank().ranks(Clock(10, 1.0), LAYERS) == [2, 2]


@pytest.mark.parametrize("step, expected", [(1, [4, 4]), (2, [2, 2]), (9, [2, 2]), (11, [4, 4])])
def test_ranks_grow_in_the_first_step_of_a_cycle_only(step, expected):
    rule = Budget(parameters=7 * COST, every=10, grow=3)
    assert rule.ranks(Clock(step, 1.0), LAYERS) == expected


def test_ranks_do_not_grow_once_the_rate_has_decayed():
    assert Budget(parameters=99 * COST, every=10).ranks(Clock(1, 0.2), LAYERS) == [2, 2]


def test_a_budget_that_is_spent_leaves_no_room_to_grow():
    assert Budget(parameters=5 * COST, every=10).ranks(Clock(1, 1.0), LAYERS) == [2, 2]
    assert Budget(parameters=6 * COST, every=10, grow=1).ranks(Clock(1, 1.0), LAYERS) == [3, 3]


def test_growth_stops_at_max_rank():
    assert Tolerance(every=10, grow=3, max_rank=3).ranks(Clock(1, 1.0), LAYERS) == [3, 3]


def test_budget_keeps_the_largest_of_all_layers():
    rule = Budget(parameters=5 * COST, every=10, keep=SUDDEN)
    assert rule.ranks(Clock(10, 1.0), GROWN) == [2, 3]


def test_budget_counts_parameters_and_never_exceeds_them():
    wide = Candidates(GROWN[0].sigma, 4, (100, 6))
    rule = Budget(parameters=107 + 3 * COST, every=10, keep=SUDDEN)
    assert rule.ranks(Clock(10, 1.0), [wide, GROWN[1]]) == [1, 3]


def test_a_budget_is_reached_by_halves():
    rule = Budget(parameters=2 * COST, every=10)
    ranks = rule.ranks(Clock(10, 1.0), GROWN)
    assert sum(ranks) == 4
    cut = [c._replace(rank=r) for c, r in zip(GROWN, ranks, strict=True)]
    assert sum(rule.ranks(Clock(20, 0.0), cut)) == 2


def test_budget_too_small_for_one_direction_a_layer_keeps_min_rank():
    rule = Budget(parameters=1, every=10, keep=SUDDEN)
    assert rule.ranks(Clock(10, 1.0), GROWN) == [1, 1]


def test_tolerance_judges_each_layer_by_itself():
    assert Tolerance(rtol=0.1, every=10).ranks(Clock(10, 1.0), GROWN) == [2, 3]
    assert Tolerance(rtol=0.45, every=10).ranks(Clock(10, 1.0), GROWN) == [1, 2]


def test_a_tolerance_takes_no_more_than_its_share_in_a_cycle():
    wide = Candidates(torch.tensor([1.0] + 29 * [0.01], dtype=torch.float64), 30, (40, 40))
    rule = Tolerance(rtol=0.3, every=10, keep=0.4)
    assert rule.ranks(Clock(10, 1.0), [wide]) == [12]
    narrow = wide._replace(sigma=wide.sigma[:12], rank=12)
    assert rule.ranks(Clock(20, 1.0), [narrow]) == [5]


def test_a_tolerance_shrinks_with_a_rate_that_has_decayed():
    # 0.1 / ||(9, 4, 0.1, 0)|| = 0.0102: above a quarter of 0.012, not above 0.012.
    rule = Tolerance(rtol=0.012, every=10, rest=0.8)
    assert rule.ranks(Clock(10, 0.4), GROWN[:1]) == [2]
    assert rule.ranks(Clock(10, 0.1), GROWN[:1]) == [3]
    assert rule.ranks(Clock(10, 0.0), GROWN[:1]) == [3]


def test_directions_of_the_last_step_are_not_judged():
    # Rank 2 before the step: the two that the step added have not been trained.
    assert Tolerance(rtol=0.0, every=10).ranks(Clock(10, 1.0), LAYERS) == [2, 2]


def test_a_vanishing_layer_keeps_one_direction():
    zero = Candidates(torch.zeros(4), 4, (10, 6))
    assert Tolerance(every=10).ranks(Clock(10, 1.0), [zero]) == [1]


def test_whole_weights_are_compared_by_their_layers_norm():
    small = GROWN[0]._replace(sigma=1e-3 * GROWN[0].sigma, whole=True)
    large = GROWN[1]._replace(sigma=1e3 * GROWN[1].sigma, whole=True)
    rule = Budget(parameters=5 * COST, every=10, keep=SUDDEN)
    assert rule.ranks(Clock(10, 1.0), [small, large]) == [2, 3]


def test_a_whole_weight_loses_at_most_half_of_its_rank_in_a_cycle():
    flat = Candidates(torch.ones(8, dtype=torch.float64), 8, (10, 6), whole=True)
    steep = flat._replace(sigma=torch.logspace(0, -9, 8, dtype=torch.float64))
    rule = Budget(parameters=8 * COST, every=10)
    assert rule.ranks(Clock(10, 1.0), [flat._replace(shape=(10, 10)), steep]) == [4, 4]


def test_a_tail_tolerance_is_the_papers_rule():
    # ||(3, 2, 0.05)|| / ||sigma|| = 0.585, ||(2, 0.05)|| = 0.324, 0.05 = 0.0081 of it.
    layer = Candidates(torch.tensor(SPECTRA[1], dtype=torch.float64), 2, (10, 6))
    for rtol, rank in ((0.6, 1), (0.5, 2), (0.1, 3), (0.001, 4), (0.0, 4)):
        assert TailTolerance(rtol).ranks(Clock(7, 1.0), [layer]) == [rank]
    assert TailTolerance(0.1, max_rank=2).ranks(Clock(7, 1.0), [layer]) == [2]
    assert TailTolerance(0.6, min_rank=2).ranks(Clock(7, 1.0), [layer]) == [2]


@pytest.mark.parametrize("order, rank", [(0.0, 2), (1.0, 3), (2.0, 4)])
def test_a_tail_tolerance_falls_with_a_power_of_the_rate(order, rank):
    layer = Candidates(torch.tensor(SPECTRA[1], dtype=torch.float64), 4, (10, 6))
    assert TailTolerance(0.35, order=order).ranks(Clock(3, 0.1), [layer]) == [rank]


@pytest.mark.parametrize("step, ranks", [(1, [4, 4]), (2, [2, 2]), (5, [2, 3]), (6, [4, 4])])
def test_in_a_cycle_bases_double_first_and_are_cut_last(step, ranks):
    assert TailTolerance(0.1, every=5).ranks(Clock(step, 1.0), LAYERS) == ranks


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: Budget(), "parameters"),
        (lambda: Budget(parameters=-3), "parameters"),
        (lambda: Budget(parameters=3, keep=1.0), "keep"),
        (lambda: Tolerance(rtol=1.0), "rtol"),
        (lambda: Tolerance(keep=0.0), "keep"),
        (lambda: Tolerance(every=1), "every"),
        (lambda: Tolerance(grow=-1), "grow"),
        (lambda: Tolerance(min_rank=0), "min_rank"),
        (lambda: Tolerance(min_rank=4, max_rank=2), "max_rank"),
        (lambda: Tolerance(rest=2.0), "rest"),
        (lambda: TailTolerance(rtol=-0.1), "rtol"),
        (lambda: TailTolerance(order=-1.0), "order"),
        (lambda: TailTolerance(every=0), "every"),
        (lambda: TailTolerance(max_rank=0), "max_rank"),
    ],
)
def test_values_out_of_range_are_named(make, name):
    with pytest.raises(ValueError, match=name):
        make()
