"""The two attacks of many steps that RobustDLRT is measured with."""

import pytest
import torch
from torch import nn

from naming import told
from rankwise.robust import FGSM, Jitter, MixupAttack, Noise
from rankwise.robust.mixup import mean_of_others
from rankwise.robust.objective import right
from victims import images, network, trained


def share(model, x, y):
    return right(model(x), y).double().mean().item()


@pytest.mark.parametrize("attack", [Jitter(), Jitter(noise=0.0), MixupAttack()], ids=told)
def test_they_fool_a_trained_network_more_than_noise_does(attack):
    model, x, y = trained()
    attacked, noisy = (share(model, a.perturb(model, x, y, 0.1), y) for a in (attack, Noise()))
    assert attacked < noisy - 0.1 < share(model, x, y)


def test_jitter_moves_a_network_whose_softmax_saturates():
    model, x, y = trained()
    saturated = nn.Sequential(model, Times(1e6))
    y = model(x).argmax(1)
    assert share(saturated, FGSM().perturb(saturated, x, y, 0.1), y) == 1.0
    assert share(saturated, Jitter().perturb(saturated, x, y, 0.1), y) < 0.8


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def test_jitter_takes_the_noise_that_it_is_given():
    model, (x, y) = network(), images()
    quiet, loud = (Jitter(noise=n).perturb(model, x, y, 0.3) for n in (0.0, 5.0))
    assert not torch.equal(quiet, loud)


def test_jitter_is_that_of_the_paper():
    """Sample by sample, in the words of the paper."""
    model, (x, y) = network().eval(), images(8)
    eps, steps, draw = 0.1, 4, torch.Generator().manual_seed(0)
    moved = x.clone()
    for _ in range(steps):
        eta = torch.randn(8, 4, generator=draw, dtype=x.dtype)
        for i in range(8):
            point = moved[i : i + 1].clone().requires_grad_()
            z = model(point)[0]
            p = torch.softmax(10 * z / z.abs().max(), 0) + 0.1 * eta[i]
            loss = (p - torch.eye(4, dtype=x.dtype)[y[i]]).square().sum()
            delta = (point[0] - x[i]).abs().max()
            if z.argmax() != y[i] and delta > 0:
                loss = loss / delta
            (g,) = torch.autograd.grad(loss, point)
            step = moved[i] - x[i] + 2.5 * eps / steps * g[0].sign()
            moved[i] = (x[i] + step.clamp(-eps, eps)).clamp(0, 1)
    found = Jitter(steps=steps).perturb(model, x, y, eps)
    torch.testing.assert_close(found, moved, rtol=0, atol=1e-12)


def test_mixup_is_what_it_says():
    """Sample by sample, in the words of the docstring."""
    model, x, y = trained()
    x, y = x[:30], y[:30]
    eps, steps, weight = 0.3, 4, 0.1
    expected = x.clone()
    for i in range(30):
        q = torch.softmax(model(x[y != y[i]].mean(0, keepdim=True)), 1).detach()
        m = torch.zeros_like(x[i])
        for _ in range(steps):
            point = expected[i : i + 1].clone().requires_grad_()
            p = torch.softmax(model(point), 1)
            loss = -(q * (q.log() - p.log())).sum()
            for k in range(1, 6):
                loss = loss - weight * torch.log_softmax(model(point / 2**k), 1)[0, y[i]]
            (g,) = torch.autograd.grad(loss, point)
            m = 0.7 * m + g[0] / g.abs().sum()
            step = expected[i] - x[i] + eps / steps * m.sign()
            expected[i] = (x[i] + step.clamp(-eps, eps)).clamp(0, 1)
    found = MixupAttack(steps, momentum=0.7, weight=weight).perturb(model, x, y, eps)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_mixture_is_the_mean_of_the_others():
    x = torch.tensor([[1.0], [3.0], [10.0], [20.0]])
    mixed = mean_of_others(x, torch.tensor([0, 0, 1, 2]))
    torch.testing.assert_close(mixed, torch.tensor([[15.0], [15.0], [8.0], [14 / 3]]))


def test_mixup_draws_features_towards_those_of_the_mixture():
    def features(model, x):
        return model[:2](x)

    model, x, y = trained()
    attack = MixupAttack(weight=0.0, features=features)
    found = attack.perturb(model, x, y, 0.1)
    p, q, r = (torch.log_softmax(features(model, t), 1) for t in (mean_of_others(x, y), x, found))
    before, after = ((p.exp() * (p - other)).sum(1) for other in (q, r))
    assert (after < before).double().mean() > 0.95


def test_mixup_weighs_its_parts():
    model, x, y = trained()
    found = [
        MixupAttack(weight=w, halvings=k).perturb(model, x, y, 0.1)
        for w, k in ((0.0, (0,)), (1e3, (0,)), (1e3, (2,)), (1e3, ()))
    ]
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])
    assert torch.equal(found[0], found[3])
    assert share(model, found[1], y) <= share(model, found[0], y)


def test_momentum_keeps_a_direction():
    """A loss that turns round: without momentum the steps do, with enough they go on."""
    model, x, y = trained()
    still, going = (MixupAttack(momentum=m).perturb(model, x, y, 0.5) for m in (0.0, 10.0))
    assert (going - x).abs().mean() > (still - x).abs().mean()


def test_a_batch_of_one_label_has_nothing_to_mix():
    x, _ = images()
    with pytest.raises(ValueError, match="one label 2.*larger batches"):
        MixupAttack().perturb(network(), x, torch.full((12,), 2), 0.1)


def test_features_of_the_wrong_shape_are_refused():
    attack = MixupAttack(features=lambda model, x: x)
    with pytest.raises(ValueError, match=r"features=...\)` must return \(12, d\)"):
        attack.perturb(network(), *images(), 0.1)
