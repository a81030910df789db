"""Spread and condition numbers: what the formulas promise, in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cases import SPECTRA, close, matrix, normal
from rankwise.numerics.condition import (
    clipped_about_mean,
    clipped_about_root_mean_square,
    condition_number,
    flattened,
    levelled,
    nearest_conditioned,
    spread,
    spread_gradient,
)

RANKS = (1, 2, 5, 12)
CLIPS = [nearest_conditioned, clipped_about_mean, clipped_about_root_mean_square]
sizes = st.floats(1e-6, 1e6)
spectra = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12)
kappas = st.floats(1.0, 50.0)


def descending(values) -> torch.Tensor:
    return torch.tensor(sorted(values, reverse=True), dtype=torch.float64)


def spread_of(sigma: torch.Tensor) -> torch.Tensor:
    return spread(torch.diag(sigma))


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_spread_is_the_deviation_of_the_squares_whatever_the_bases(spectrum, rank, draw):
    sigma = SPECTRA[spectrum](rank)
    S = matrix(rank, rank, sigma, draw)
    expected = sigma.square().std(correction=0) * rank**0.5
    close(spread(S), expected)
    close(spread(matrix(rank + 9, rank, sigma, draw)), expected)


@pytest.mark.parametrize("rank", (2, 5, 12))
def test_its_gradient_is_that_of_autograd(rank, draw):
    S = normal(rank, rank, draw=draw).requires_grad_()
    spread(S).backward()
    close(spread_gradient(S.detach()), S.grad)


@pytest.mark.parametrize("rank", (2, 5, 12))
def test_the_gradient_along_the_matrix_is_twice_the_spread_and_bounded_by_the_norm(rank, draw):
    S = normal(rank, rank, draw=draw)
    gradient = spread_gradient(S)
    close((gradient * S).sum(), 2 * spread(S))
    assert gradient.norm() <= 2 * S.norm()


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("spectrum", ["repeated", "zero"])
def test_where_there_is_no_spread_the_gradient_is_zero_and_nothing_moves(spectrum, rank):
    sigma = SPECTRA[spectrum](rank)
    S = torch.diag(sigma)
    # In diag(0.7, ...) the spread is zero up to rounding at most.
    assert spread(S) < 1e-15
    assert spread_gradient(0 * S).abs().max() == 0
    close(flattened(sigma, 0.1), sigma)


@given(spectra)
def test_the_papers_bound_of_the_condition_number_holds(values):
    sigma = descending(values) + 0.05
    bound = torch.exp(spread_of(sigma) / (math.sqrt(2) * sigma[-1].square()))
    assert condition_number(sigma) <= bound * (1 + 1e-12)


def test_a_short_step_is_the_gradient_step_to_second_order(draw):
    sigma = descending(torch.rand(6, dtype=torch.float64, generator=draw).tolist()) + 0.1

    def defect(h: float) -> float:
        scale = sigma.square().mean()
        # ||y|| is R / alpha^2, so that a step of R's own gradient has the same length.
        along = torch.diag(spread_gradient(torch.diag(sigma)))
        assert scale > 0
        return float((flattened(sigma, h) - (sigma - h * along)).norm())

    assert defect(1e-2) / defect(1e-3) == pytest.approx(100, rel=0.2)


@given(spectra, st.floats(0.0, 10.0), sizes)
def test_a_step_lowers_spread_and_condition_keeps_the_order_and_knows_no_unit(values, h, size):
    sigma = descending(values)
    new = flattened(sigma, h)
    assert bool((new.diff() <= 1e-15).all())
    assert bool((new >= 0).all()) and bool(new.isfinite().all())
    assert spread_of(new) <= spread_of(sigma) + 1e-12
    close(flattened(size * sigma, h), size * new)
    if h <= 0.25 and sigma[-1] > 0:
        assert condition_number(new) <= condition_number(sigma) * (1 + 1e-12)
        ratio = new / sigma
        assert ratio.max() <= math.exp(2 * h) + 1e-12 and ratio.min() >= math.exp(-2 * h) - 1e-12


@pytest.mark.parametrize("rank", (2, 5, 12))
def test_steps_end_where_all_are_alike(rank):
    sigma = SPECTRA["generic"](rank)
    for _ in range(400):
        sigma = flattened(sigma, 0.01)
    assert condition_number(sigma) == pytest.approx(1.0, abs=1e-9)


def test_the_longest_step_throws_nobody_past_the_others():
    sigma = descending([10.0] + 63 * [1.0])
    new = flattened(sigma, 1e4)
    assert new[0] >= new[1] and condition_number(new) < condition_number(sigma)


@pytest.mark.parametrize("kappa", (1e12, 1e20, 1e39, 1e300))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_a_limit_so_high_that_its_square_is_none_leaves_what_is_there(dtype, kappa):
    sigma = torch.tensor([2.0, 1.0, 0.5], dtype=dtype)
    close(nearest_conditioned(sigma, kappa), sigma)


@pytest.mark.parametrize("clip", CLIPS)
@given(spectra, kappas)
def test_a_clip_keeps_to_the_condition_number_and_the_order(clip, values, kappa):
    sigma = descending(values)
    new = clip(sigma, kappa)
    assert bool((new.diff() <= 1e-15).all())
    assert new[0] <= kappa * new[-1] * (1 + 1e-12)
    assert bool((new > 0).all()) or not bool(sigma.any())


@given(spectra, kappas, sizes)
def test_the_projection_is_idempotent_knows_no_unit_and_no_point_is_nearer(values, kappa, size):
    sigma = descending(values)
    new = nearest_conditioned(sigma, kappa)
    close(nearest_conditioned(new, kappa), new)
    close(nearest_conditioned(size * sigma, kappa) / size, new)
    distance = (new - sigma).norm()
    for low in torch.linspace(0, 1, 301, dtype=torch.float64):
        assert distance <= (sigma.clamp(low, kappa * low) - sigma).norm() + 1e-12


@given(spectra, st.floats(1.0, 3.0))
def test_what_is_well_conditioned_stays(values, slack):
    sigma = descending(values) + 0.1
    close(nearest_conditioned(sigma, float(condition_number(sigma)) * slack), sigma)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("rank", RANKS)
def test_of_condition_one_the_nearest_is_the_mean_and_levelling_keeps_the_norm(rank, spectrum):
    sigma = SPECTRA[spectrum](rank)
    close(nearest_conditioned(sigma, 1.0), sigma.mean().expand(rank))
    close(clipped_about_mean(sigma, 1.0), sigma.mean().expand(rank))
    close(levelled(sigma).norm(), sigma.norm())
    assert condition_number(levelled(sigma)) == 1


def test_condition_numbers_of_what_has_zeros():
    assert condition_number(SPECTRA["zero"](3)) == 1
    assert condition_number(SPECTRA["rank-deficient"](3)) == math.inf
