"""Classifiers whose strongest perturbation is known in closed form."""

import pytest
import torch

from naming import told
from rankwise.robust import FGSM, L2, PGD, IteratedFGSM, Jitter, Linf, ScaledFGSM
from rankwise.robust.objective import cross_entropy, jitter, margin, right
from victims import linear

EPS = 0.3


def problem(classes: int = 2):
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(6, 5, generator=draw, dtype=torch.float64)
    return linear(5, classes), x, torch.arange(6) % classes


def uphill(model, y):
    """Of two classes the loss grows along the difference of their weights, anywhere."""
    difference = model.weight[1 - y] - model.weight[y]
    return difference.detach()


@pytest.mark.parametrize(
    "attack",
    [FGSM(), PGD(), PGD(steps=3), PGD(restarts=3), PGD(objective=margin), IteratedFGSM()],
    ids=lambda a: told(a).partition("objective")[0],
)
def test_linf(attack):
    model, x, y = problem()
    optimum = x + EPS * uphill(model, y).sign()
    assert torch.equal(attack.perturb(model, x, y, EPS, bounds=None), optimum)


@pytest.mark.parametrize(
    "attack", [FGSM(L2()), PGD(L2()), PGD(L2(), restarts=3), IteratedFGSM(L2())], ids=told
)
def test_l2(attack):
    model, x, y = problem()
    g = uphill(model, y)
    optimum = x + EPS * g / g.norm(dim=1, keepdim=True)
    found = attack.perturb(model, x, y, EPS, bounds=None)
    torch.testing.assert_close(found, optimum, rtol=0, atol=1e-13)


def test_the_scaled_one_is_proportional_to_the_gradient_and_reaches_eps_once():
    model, x, y = problem()
    g = uphill(model, y)
    expected = x + EPS * g / g.abs().amax(1, keepdim=True)
    found = ScaledFGSM().perturb(model, x, y, EPS, bounds=None)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    reached = (found - x).abs() > EPS - 1e-12
    assert (reached.sum(1) == 1).all()


@pytest.mark.parametrize("ball", [Linf(), L2()], ids=told)
def test_no_point_of_the_ball_has_a_larger_loss(ball):
    model, x, y = problem()
    best = cross_entropy(model(PGD(ball).perturb(model, x, y, EPS, bounds=None)), y)
    for seed in range(20):
        delta = ball.sample(x, EPS, torch.Generator().manual_seed(seed))
        assert (cross_entropy(model(x + delta), y) <= best).all()


def test_with_bounds_the_optimum_is_clipped():
    model, x, y = problem()
    x = x.sigmoid()
    optimum = (x + EPS * uphill(model, y).sign()).clamp(0, 1)
    assert (optimum == 0).any() and (optimum == 1).any()
    for attack in (FGSM(), PGD(), IteratedFGSM()):
        assert torch.equal(attack.perturb(model, x, y, EPS), optimum)


def test_jitter_without_noise_climbs_the_same_way_to_the_end_for_who_withstands():
    """Two opposed logits: its rescaled probabilities grow along the sign of the gradient too."""
    model, x, _ = problem()
    with torch.no_grad():
        model.weight[1] = -model.weight[0]
        model.bias.copy_(torch.tensor([40.0, 0.0]))
        y = torch.zeros(6, dtype=torch.long)
    found = Jitter(noise=0.0).perturb(model, x, y, EPS, bounds=None)
    g = jitter_gradient(model, x, y)
    assert g.abs().min() > 0
    torch.testing.assert_close(found, x + EPS * g.sign(), rtol=0, atol=1e-14)


def jitter_gradient(model, x, y):
    point = x.clone().requires_grad_()
    z = model(point)
    jitter(z, y, torch.zeros_like(z), 10.0).sum().backward()
    return point.grad


def test_margin_and_right_agree():
    model, x, y = problem(4)
    z = model(x)
    assert torch.equal(right(z, y), margin(z, y) < 0)
    assert torch.equal(right(z, z.argmax(1)), torch.ones(6, dtype=torch.bool))
    assert not right(z * torch.nan, y).any()


def test_margin_by_hand():
    z = torch.tensor([[1.0, 4.0, 2.0], [3.0, 0.0, -1.0]])
    assert margin(z, torch.tensor([1, 2])).tolist() == [-2.0, 4.0]


def test_jitter_by_hand():
    z = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    noise = torch.tensor([[0.1, -0.2]], dtype=torch.float64)
    p = torch.softmax(torch.tensor([10.0, -5.0], dtype=torch.float64), 0)
    expected = (p[0] + 0.1 - 1) ** 2 + (p[1] - 0.2) ** 2
    assert jitter(z, torch.tensor([0]), noise, 10.0).item() == pytest.approx(expected.item())
    assert jitter(z * 0, torch.tensor([0]), noise, 10.0).isfinite().all()
