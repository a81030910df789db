"""Sharing a budget: hulls, and greedy choices against an exhaustive search."""

from itertools import product

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.numerics.allocate import allocate, options

energies = st.lists(st.floats(0.0, 10.0), min_size=1, max_size=5).map(
    lambda values: sorted(values, reverse=True)
)


def test_an_option_by_hand():
    # A 4 x 4 weight: a direction costs 8, so rank 1 is the only cut that saves anything.
    found = options([5.0, 3.0, 1.0, 1.0], direction=8, whole=16)
    assert [(o.cost, o.loss, o.rank) for o in found] == [(8, 5.0, 1), (16, 0.0, 0)]
    # Here the second direction saves less per cost than going whole does: it is no option.
    found = options([9.0, 1.0, 4.0], direction=4, whole=12)
    assert [o.rank for o in found] == [1, 0]


@given(energies, st.integers(1, 6), st.integers(4, 30))
def test_along_the_hull_each_further_cost_saves_less(values, direction, whole):
    hull = options(values, direction=direction, whole=whole)
    slopes = [(a.loss - b.loss) / (b.cost - a.cost) for a, b in zip(hull, hull[1:], strict=False)]
    assert all(a > b for a, b in zip(slopes, slopes[1:], strict=False))
    assert hull[-1] == (whole, 0.0, 0)
    for rank in range(1, len(values) + 1):
        cost, loss = rank * direction, sum(values[rank:])
        if cost < whole:
            left = max((o for o in hull if o.cost <= cost), key=lambda o: o.cost, default=hull[0])
            right = min((o for o in hull if o.cost >= cost), key=lambda o: o.cost)
            t = 0.0 if right.cost == left.cost else (cost - left.cost) / (right.cost - left.cost)
            assert loss >= left.loss + t * (right.loss - left.loss) - 1e-9


@settings(max_examples=150)
@given(st.lists(energies, min_size=1, max_size=4), st.floats(0.2, 1.0))
def test_the_greedy_choice_is_within_one_step_of_the_best(layers, keep):
    hulls = [options(values, direction=3, whole=10) for values in layers]
    budget = keep * 10 * len(hulls)
    chosen = allocate(hulls, budget)
    cheapest = sum(hull[0].cost for hull in hulls)
    assert sum(o.cost for o in chosen) <= max(budget, cheapest)
    fitting = [
        sum(o.loss for o in choice)
        for choice in product(*hulls)
        if sum(o.cost for o in choice) <= max(budget, cheapest)
    ]
    steps = [a.loss - b.loss for hull in hulls for a, b in zip(hull, hull[1:], strict=False)]
    assert sum(o.loss for o in chosen) <= min(fitting) + max(steps, default=0.0) + 1e-9


def test_a_budget_for_all_leaves_all_whole_and_none_gives_the_cheapest():
    hulls = [options([4.0, 2.0, 1.0], direction=2, whole=9) for _ in range(3)]
    assert [o.rank for o in allocate(hulls, 27)] == [0, 0, 0]
    assert [o.rank for o in allocate(hulls, 0)] == [1, 1, 1]


def test_layers_that_matter_keep_more():
    much, little = torch.logspace(2, 0, 5).tolist(), torch.logspace(0, -2, 5).tolist()
    hulls = [options(e, direction=2, whole=11) for e in (much, little)]
    first, second = allocate(hulls, 12)
    assert first.cost > second.cost
