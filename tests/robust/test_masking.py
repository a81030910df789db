"""Models that only look robust are told from those that are not."""

import re
import warnings

import pytest
import torch
from torch import nn

from naming import told
from rankwise.robust import L2, Linf, Noise, masking_signs
from rankwise.robust.masking import reach
from rankwise.robust.objective import right
from victims import assert_same_state, state_of, trained


class Rounds(nn.Module):
    def forward(self, x):
        return (x * 8).round() / 8


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


class Misleads(nn.Module):
    """The right value, and off a grid of 1/64 a gradient that points back where it came from."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        z = self.net(x)
        off = (64 * x - (64 * x).round()).abs().amax(1, keepdim=True) > 1e-6
        return torch.where(off, 2 * z.detach() - z, z)


def problem():
    net, x, y = trained()
    return net, x, net(x).argmax(1), y


@pytest.mark.parametrize("ball, eps", [(None, 0.1), (Linf(), 0.02), (L2(), 0.2)], ids=told)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
def test_an_ordinary_model_shows_none(ball, eps, bounds):
    net, x, _, y = problem()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert masking_signs(net, x, y, eps, ball=ball, bounds=bounds) == []


@pytest.mark.parametrize("ball, eps", [(Linf(), 0.15), (L2(), 0.3)], ids=told)
def test_one_that_rounds_has_no_gradient_to_follow(ball, eps):
    net, x, _, y = problem()
    with pytest.warns(UserWarning, match="mask its gradients.*where any input.*random noise"):
        signs = masking_signs(nn.Sequential(Rounds(), net), x, y, eps, ball=ball)
    assert len(signs) == 2
    assert "where any input may become any other" in signs[0]
    assert "random noise" in signs[1]


def test_noise_has_ten_draws_to_fool_a_sample():
    net, x, _, y = problem()
    model = nn.Sequential(Rounds(), net)
    with pytest.warns(UserWarning):
        *_, sign = masking_signs(model, x, y, 0.1)
    left = float(re.search(r"leaves ([\d.]+)% classified right, the gradient", sign)[1]) / 100
    seeds = [torch.Generator().manual_seed(seed) for seed in range(10)]
    single = [right(model(Noise().perturb(model, x, y, 0.1, generator=g)), y) for g in seeds]
    assert left < min(s.double().mean() for s in single) - 0.1
    # Other draws, and as many.
    assert left == pytest.approx(torch.stack(single).all(0).double().mean().item(), abs=0.1)


def test_one_that_saturates_has_no_gradient_where_it_is_right():
    net, x, y, _ = problem()
    with pytest.warns(UserWarning, match="mask its gradients"):
        signs = masking_signs(nn.Sequential(net, Times(1e30)), x, y, 0.15)
    assert any("where any input may become any other" in sign for sign in signs)
    assert any("random noise" in sign for sign in signs)


def test_one_whose_gradients_mislead_loses_with_every_further_step():
    net, x, *_ = problem()
    x = (64 * x).round() / 64
    with pytest.warns(UserWarning, match="many small steps"):
        signs = masking_signs(Misleads(net), x, net(x).argmax(1), 0.1)
    assert len(signs) == 1


def test_it_looks_at_the_first_rows_only_and_changes_nothing():
    net, x, _, y = problem()
    before = state_of(net.train())
    rounds = nn.Sequential(Rounds(), net)
    y = y.clone()
    y[50:] = (y[50:] + 1) % 4
    with pytest.warns(UserWarning):
        assert masking_signs(rounds, x, y, 0.15, rows=50)
    with pytest.warns(UserWarning):
        assert masking_signs(rounds, x[:50], y[:50], 0.15) == masking_signs(
            rounds, x, y, 0.15, rows=50
        )
    assert_same_state(net, before)


def test_the_reach_of_a_ball():
    x = torch.tensor([[0.0, 0.5, 2.0, 1.0]])
    assert reach(x, Linf(), (0.0, 3.0)) == 3.0
    assert reach(x, Linf(), None) == 2.0
    assert reach(x, L2(), (0.0, 3.0)) == 6.0


@pytest.mark.parametrize(
    "change, text",
    [
        ({"eps": 0.0}, "`eps` must be > 0"),
        ({"eps": -1.0}, "`eps` must be finite and >= 0"),
        ({"rows": 0}, "rows"),
        ({"ball": "linf"}, "ball"),
    ],
)
def test_what_does_not_fit_is_refused(change, text):
    net, x, _, y = problem()
    with pytest.raises((ValueError, TypeError), match=text):
        masking_signs(**{"model": net, "x": x, "y": y, "eps": 0.1} | change)
