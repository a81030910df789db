"""Order, exactness and robustness to small singular values, on flows with known solutions."""

import pytest
import torch

from cases import normal
from flows import ALL, one_step, solve
from rankwise.check import RotatingFlow, order_of_step
from rankwise.integrators.parallel_bug import ParallelBUG
from rankwise.numerics.init import truncated_svd
from rankwise.numerics.retract import cut

SMALLEST = [1e-1, 1e-4, 1e-8]
each = pytest.mark.parametrize("integrator", ALL, ids=lambda i: type(i).__name__)


def flow(smallest: float, draw: torch.Generator, m: int = 20, n: int = 15) -> RotatingFlow:
    exponent = torch.tensor(smallest).log10().item()
    return RotatingFlow(m, n, torch.logspace(0, exponent, 6, dtype=torch.float64), generator=draw)


@each
@pytest.mark.parametrize("smallest", SMALLEST)
def test_the_order_is_one_however_small_the_singular_values(integrator, smallest, draw):
    way = flow(smallest, draw)
    errors = [
        (solve(integrator, way, 6, 0.5, steps).dense() - way.at(0.5)).norm()
        for steps in (40, 80, 160)
    ]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert 0.9 < torch.log2(coarse / fine) < 1.25
    assert errors[-1] < 0.05 * way.at(0.5).norm()


@pytest.mark.parametrize("integrator", ALL[1:], ids=lambda i: type(i).__name__)
@pytest.mark.parametrize("smallest", SMALLEST)
def test_an_increment_between_matrices_of_the_rank_is_reached_exactly(integrator, smallest, draw):
    way = flow(smallest, draw)
    f = truncated_svd(way.at(0.0), 6)
    new = cut(one_step(integrator, f, lambda W: way.at(0.0) - way.at(0.4), 1.0), 6)
    assert (new.dense() - way.at(0.4)).norm() < 1e-11 * way.at(0.4).norm()


def test_the_parallel_step_misses_what_is_new_on_both_sides_and_that_is_of_second_order(draw):
    way = flow(0.1, draw)
    f, missed = truncated_svd(way.at(0.0), 6), []
    for h in (0.1, 0.05, 0.025):
        got = cut(one_step(ParallelBUG(), f, lambda W, h=h: way.at(0.0) - way.at(h), 1.0), 12)
        missed.append((got.dense() - way.at(h)).norm())
    for coarse, fine in zip(missed, missed[1:], strict=False):
        assert 1.9 < torch.log2(coarse / fine) < 2.2


@each
def test_a_start_off_the_manifold_costs_no_more_than_its_distance(integrator, draw):
    way = flow(0.1, draw)
    noise = normal(20, 15, draw=draw)
    way.start = way.start + 1e-3 * noise / noise.norm()
    error = (solve(integrator, way, 6, 0.5, 400).dense() - way.at(0.5)).norm()
    clean = flow(0.1, torch.Generator().manual_seed(0))
    own = (solve(integrator, clean, 6, 0.5, 400).dense() - clean.at(0.5)).norm()
    assert error < own + 5e-3


@each
def test_a_field_that_leads_off_the_manifold_costs_the_same_at_any_singular_values(integrator):
    """What divides by singular values fails here by four orders: `tests/check`."""
    large, small = (
        order_of_step(integrator, smallest=smallest, outside=1e-2) for smallest in (1e-1, 1e-8)
    )
    for a, b in zip(small.errors, large.errors, strict=True):
        assert a < 2 * b
