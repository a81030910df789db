"""The order of strength: PGD, more of it, and the attack of one gradient."""

import pytest
import torch
from torch import nn

from naming import told
from rankwise.robust import FGSM, L2, PGD, IteratedFGSM, Linf
from rankwise.robust.best import Best
from rankwise.robust.objective import cross_entropy, margin, right
from victims import images, linear, network, trained

EPS = [0.003, 0.01, 0.03, 0.1, 0.3]


@pytest.mark.parametrize("ball", [Linf(), L2()], ids=told)
@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("victim", ["random", "trained", "rounding"])
def test_never_weaker_than_fgsm_for_any_sample(ball, eps, victim):
    if victim == "trained":
        model, x, y = trained()
    else:
        (x, y), model = images(40), network(1).eval()
        y = model(x).argmax(1)
    if victim == "rounding":
        model = nn.Sequential(Rounds(), model)
    one, many = (a.perturb(model, x, y, eps) for a in (FGSM(ball), PGD(ball, steps=7)))
    stands_one, stands_many = right(model(one), y), right(model(many), y)
    assert (stands_many <= stands_one).all()
    both = stands_many
    assert (cross_entropy(model(many), y)[both] >= cross_entropy(model(one), y)[both]).all()


class Rounds(nn.Module):
    """Straight-through rounding to tenths: gradients that do not tell all."""

    def forward(self, x):
        return x + ((x * 10).round() / 10 - x).detach()


def test_it_is_stronger_where_the_loss_is_curved():
    """On a ring of one class, one step along the gradient leaves the best place behind."""

    class Ring(nn.Module):
        def forward(self, x):
            z = 4 - 100 * ((x - 0.6).square().sum(1) - 0.01).abs()
            return torch.stack([torch.zeros_like(z), z], 1)

    x = torch.full((1, 2), 0.2, dtype=torch.float64)
    y = torch.zeros(1, dtype=torch.long)
    model = Ring()
    assert right(model(FGSM().perturb(model, x, y, 0.8)), y).all()
    assert not right(model(PGD(steps=40).perturb(model, x, y, 0.8)), y).any()


def test_more_restarts_never_weaken_and_may_help():
    """Without a gradient at the start only a random start leads anywhere."""

    class Plateau(nn.Module):
        def forward(self, x):
            z = torch.relu((x - 0.5).abs().amax(1) - 0.05) * 10 - 0.1
            return torch.stack([torch.zeros_like(z), z], 1)

    model, x, y = Plateau(), torch.full((8, 3), 0.5), torch.zeros(8, dtype=torch.long)
    once = PGD(restarts=1).perturb(model, x, y, 0.2)
    assert torch.equal(once, x)
    often = PGD(restarts=5).perturb(model, x, y, 0.2)
    assert not right(model(often), y).any()
    other = torch.Generator().manual_seed(9)
    assert not torch.equal(often, PGD(restarts=5).perturb(model, x, y, 0.2, generator=other))


def test_the_objective_decides_where_it_goes():
    model, x, y = trained()
    by_loss, by_margin = (
        PGD(steps=5, objective=o).perturb(model, x, y, 0.05) for o in (cross_entropy, margin)
    )
    assert not torch.equal(by_loss, by_margin)
    both = right(model(by_loss), y) & right(model(by_margin), y)
    assert both.any()
    assert margin(model(by_margin), y)[both].mean() >= margin(model(by_loss), y)[both].mean()


def test_steps_are_of_the_size_asked_for():
    model, x, y = linear(), torch.zeros(2, 5, dtype=torch.float64), torch.tensor([0, 1])
    found = IteratedFGSM(steps=3, step=0.01).perturb(model, x, y, 1.0, bounds=None)
    torch.testing.assert_close(found.abs(), torch.full_like(found, 0.03))
    found = PGD(L2(), steps=3, step=0.01).perturb(model, x, y, 1.0, bounds=None)
    # The candidate of one step to the surface is better here.
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2, dtype=torch.float64))


def test_the_best_is_chosen_sample_by_sample():
    nan = float("nan")
    first = Best(
        torch.zeros(6, 1), *columns([(0, 1.0), (0, 1.0), (1, 0.0), (1, 5), (0, nan), (0, 1)])
    )
    other = Best(
        torch.ones(6, 1), *columns([(0, 2.0), (1, 0.5), (0, 9.0), (1, 5), (0, 0.0), (0, nan)])
    )
    best = first.or_else(other)
    assert best.x.flatten().tolist() == [1, 1, 0, 0, 1, 0]
    assert best.wrong.tolist() == [False, True, True, True, False, False]
    assert best.value.tolist() == [2.0, 0.5, 0.0, 5.0, 0.0, 1.0]


def columns(pairs):
    return torch.tensor([bool(w) for w, _ in pairs]), torch.tensor([float(v) for _, v in pairs])
