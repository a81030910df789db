"""Rank rules by hand: when they grow, what they cut, what they refuse."""

import pytest
import torch

from rankwise.optim.rank_rule import Budget, Candidates, Clock, FixedRank, Tolerance

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
    ],
)
def test_values_out_of_range_are_named(make, name):
    with pytest.raises(ValueError, match=name):
        make()
