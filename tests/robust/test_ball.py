"""The geometry of perturbations."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from naming import told
from rankwise.robust.ball import L2, Linf

BALLS = [Linf(), L2()]
BALL = pytest.mark.parametrize("ball", BALLS, ids=told)


def rows(seed: int, *shape: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


@BALL
@given(seed=st.integers(0, 2**31), eps=st.floats(1e-3, 10))
def test_projection_is_idempotent_and_inside(ball, seed, eps):
    near = ball.project(3 * rows(seed, 4, 3, 2), eps)
    assert (ball.size(near) <= eps * (1 + 1e-14)).all()
    torch.testing.assert_close(ball.project(near, eps), near, rtol=1e-14, atol=0)


@BALL
@given(seed=st.integers(0, 2**31), eps=st.floats(1e-3, 10))
def test_no_point_of_the_ball_is_nearer_than_the_projection(ball, seed, eps):
    """For a convex set: `<delta - p, q - p> <= 0` for all its points q."""
    delta = 3 * rows(seed, 1, 5)
    p = ball.project(delta, eps)
    q = ball.sample(delta.expand(200, 5), eps, torch.Generator().manual_seed(seed))
    assert ((delta - p) * (q - p)).sum(1).max() <= 1e-12 * (1 + eps) * delta.norm()


@BALL
def test_inner_points_stay_as_they_are(ball):
    delta = rows(0, 4, 3)
    assert torch.equal(ball.project(delta, 100.0), delta)


@BALL
@given(seed=st.integers(0, 2**31))
def test_no_unit_step_climbs_more_than_the_steepest(ball, seed):
    g = rows(seed, 1, 6)
    step = ball.steepest(g)
    torch.testing.assert_close(ball.size(step), torch.ones(1, dtype=torch.float64))
    others = ball.sample(g.expand(300, 6), 1.0, torch.Generator().manual_seed(seed))
    assert (others @ g[0]).max() <= (step @ g[0]) * (1 + 1e-12)


@BALL
@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_the_steepest_step_does_not_depend_on_the_scale(ball, scale):
    g = rows(0, 3, 4)
    torch.testing.assert_close(ball.steepest(g * scale), ball.steepest(g))


@BALL
def test_no_gradient_no_step(ball):
    g = rows(0, 3, 4)
    g[1] = 0
    step = ball.steepest(g)
    assert step.isfinite().all()
    assert ball.size(step).tolist() == pytest.approx([1.0, 0.0, 1.0])


def test_samples_are_uniform_in_the_ball():
    like = torch.zeros(40_000, 3, dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    cube = Linf().sample(like, 2.0, draw)
    assert cube.abs().max() <= 2.0
    # A cube of half the side has an eighth of the volume, as has a ball of half the radius.
    assert (Linf().size(cube) < 1.0).double().mean().item() == pytest.approx(1 / 8, abs=0.006)
    ball = L2().sample(like, 2.0, draw)
    assert L2().size(ball).max() <= 2.0
    assert (L2().size(ball) < 1.0).double().mean().item() == pytest.approx(1 / 8, abs=0.006)
    assert ball.mean(0).abs().max() < 0.03


@BALL
def test_samples_depend_on_the_generator_alone(ball):
    like = torch.zeros(3, 4)
    before = torch.random.get_rng_state()
    a, b, c = (ball.sample(like, 1.0, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.random.get_rng_state(), before)
