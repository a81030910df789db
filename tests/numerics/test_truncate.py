"""Ranks from singular values, by hand and against enumeration."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.numerics.truncate import rank_above, rank_for_tolerance, ranks_for_budget

BY_HAND = torch.tensor([1.0, 0.5, 0.05, 0.04], dtype=torch.float64)


@pytest.mark.parametrize(
    "rtol, rank",
    # ||sigma|| = 1.1199, tails .5041, .0640, .0400: relative .4501, .0572, .0357.
    [(0.0, 4), (0.03, 4), (0.036, 3), (0.057, 3), (0.058, 2), (0.45, 2), (0.451, 1), (0.99, 1)],
)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_rank_for_a_tolerance_by_hand_at_any_scale(rtol, rank, scale, dtype):
    assert rank_for_tolerance((BY_HAND * scale).to(dtype), rtol=rtol) == rank


@pytest.mark.parametrize(
    "rtol, rank",
    # sigma / ||sigma|| = .8929, .4465, .0446, .0357.
    [(0.0, 4), (0.035, 4), (0.036, 3), (0.045, 2), (0.446, 2), (0.447, 1), (0.99, 1)],
)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_rank_above_a_tolerance_by_hand_at_any_scale(rtol, rank, scale, dtype):
    assert rank_above((BY_HAND * scale).to(dtype), rtol=rtol) == rank


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_the_rank_above_a_tolerance_is_bounded_and_so_is_what_is_cut(values, rtol):
    sigma = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    rank = rank_above(sigma, rtol=rtol)
    assert rank <= max(1, 1 / rtol**2 * (1 + 1e-9))
    assert rank == 1 or sigma[rank - 1] >= rtol * sigma.norm() * (1 - 1e-12)
    assert sigma[rank:].norm() <= (len(values) - rank) ** 0.5 * rtol * sigma.norm() * (1 + 1e-12)


def test_more_noise_directions_keep_no_more_signal_and_a_tail_would_keep_the_noise():
    signal, noise = torch.tensor([3.0, 2.0]), 0.4
    for count in (4, 16, 30):
        sigma = torch.cat([signal, torch.full((count,), noise)])
        assert rank_above(sigma, rtol=0.2) == 2
    assert rank_for_tolerance(sigma, rtol=0.2) > 20


@pytest.mark.parametrize("rank", [rank_for_tolerance, rank_above])
@pytest.mark.parametrize("rtol", [0.0, 0.5])
def test_a_zero_spectrum_keeps_the_least_rank(rank, rtol):
    zero = torch.zeros(3)
    assert rank(zero, rtol=rtol) == 1
    assert rank(zero, rtol=rtol, min_rank=2) == 2


@pytest.mark.parametrize("rank", [rank_for_tolerance, rank_above])
def test_the_least_rank_is_no_more_than_there_is(rank):
    assert rank(BY_HAND, rtol=0.5, min_rank=3) == 3
    assert rank(BY_HAND, rtol=0.5, min_rank=9) == 4


@pytest.mark.parametrize("rank", [rank_for_tolerance, rank_above])
def test_zeros_are_dropped_even_at_zero_tolerance(rank):
    assert rank(torch.tensor([1.0, 1e-8, 0.0, 0.0]), rtol=0.0) == 2


@given(
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8), st.floats(0.0, 0.99), st.integers(1, 3)
)
def test_the_rank_is_the_smallest_whose_tail_is_within_the_tolerance(values, rtol, min_rank):
    sigma = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    rank = rank_for_tolerance(sigma, rtol=rtol, min_rank=min_rank)
    allowed = rtol * sigma.norm()
    assert sigma[rank:].norm() <= allowed * (1 + 1e-12)
    least = min(min_rank, len(values))
    assert rank >= least
    assert rank == least or sigma[rank - 1 :].norm() > allowed * (1 - 1e-12)


@pytest.mark.parametrize("rank", [rank_for_tolerance, rank_above])
@pytest.mark.parametrize("rtol", [-0.1, 1.0, float("nan")])
def test_a_tolerance_that_is_no_fraction_is_refused(rank, rtol):
    with pytest.raises(ValueError, match=r"`rtol` must be in \[0, 1\), got"):
        rank(BY_HAND, rtol=rtol)


def spectra(min_size: int = 0):
    values = st.lists(st.floats(0.0, 10.0), min_size=min_size, max_size=4)
    return st.lists(values.map(lambda v: sorted(v, reverse=True)), min_size=1, max_size=3)


def kept(scores, ranks) -> float:
    return sum(sum(s[:r]) for s, r in zip(scores, ranks, strict=True))


@given(spectra(), st.integers(0, 12), st.integers(0, 2))
def test_equal_costs_keep_as_much_as_any_choice_within_the_budget(scores, budget, min_rank):
    ranks = ranks_for_budget(scores, [1] * len(scores), budget=budget, min_rank=min_rank)
    least = [min(min_rank, len(s)) for s in scores]
    choices = itertools.product(
        *(range(low, len(s) + 1) for low, s in zip(least, scores, strict=True))
    )
    allowed = [c for c in choices if sum(c) <= max(budget, sum(least))]
    assert tuple(ranks) in allowed
    assert kept(scores, ranks) >= max(kept(scores, c) for c in allowed) - 1e-12


@given(
    st.integers(1, 3).flatmap(
        lambda k: st.tuples(
            st.lists(
                st.lists(st.floats(0.0, 10.0), max_size=4).map(lambda v: sorted(v, reverse=True)),
                min_size=k,
                max_size=k,
            ),
            st.lists(st.integers(1, 5), min_size=k, max_size=k),
        )
    ),
    st.integers(0, 25),
    st.integers(0, 2),
)
def test_a_direction_is_refused_only_if_better_ones_have_used_up_the_budget(
    layers, budget, min_rank
):
    scores, costs = layers
    ranks = ranks_for_budget(scores, costs, budget=budget, min_rank=min_rank)
    least = [min(min_rank, len(s)) for s in scores]
    spent = sum(r * c for r, c in zip(ranks, costs, strict=True))
    assert spent <= max(budget, sum(r * c for r, c in zip(least, costs, strict=True)))
    assert all(low <= r <= len(s) for low, r, s in zip(least, ranks, scores, strict=True))
    for s, cost, rank in zip(scores, costs, ranks, strict=True):
        if rank < len(s):
            better = sum(
                other_cost * max(low, sum(v >= s[rank] for v in other[:r]))
                for other, other_cost, r, low in zip(scores, costs, ranks, least, strict=True)
            )
            assert better + cost > budget


def test_an_expensive_direction_is_passed_over_for_cheaper_ones():
    assert ranks_for_budget([[3.0, 2.0], [2.5, 1.0]], [10, 2], budget=13) == [1, 1]
    assert ranks_for_budget([[3.0, 2.0], [2.5, 1.0]], [10, 2], budget=15) == [1, 2]
    assert ranks_for_budget([[3.0, 2.0], [2.5, 1.0]], [10, 2], budget=22) == [2, 1]


def test_every_layer_keeps_the_least_rank_even_beyond_the_budget():
    assert ranks_for_budget([[1.0, 0.5], [9.0, 8.0]], [4, 4], budget=5, min_rank=1) == [1, 1]
    assert ranks_for_budget([[1.0], [9.0, 8.0]], [4, 4], budget=0, min_rank=2) == [1, 2]


def test_a_budget_for_all_keeps_all():
    assert ranks_for_budget([[1.0, 0.0], [0.0]], [1, 1], budget=100) == [2, 1]


def test_no_layers_have_no_ranks():
    assert ranks_for_budget([], [], budget=10) == []
