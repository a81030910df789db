"""Low-rank models are attacked as their dense equals, and training against attacks stays exact."""

import copy

import pytest
import torch
from torch import nn

import rankwise as rw
from naming import told
from rankwise.integrators import AugmentedBUG, AugmentedPSI, ParallelBUG
from rankwise.nn import LowRankConv2d, LowRankLinear, TuckerConv2d
from rankwise.robust import FGSM, PGD, Jitter, MixupAttack, ScaledFGSM
from victims import images, network

ATTACKS = [FGSM(), ScaledFGSM(), PGD(steps=5), Jitter(), MixupAttack()]


def low_rank(kind: type[nn.Module] = LowRankConv2d) -> nn.Module:
    model = network()
    rw.factorize_(model, rank=3, convolution=kind)
    return model


@pytest.mark.parametrize("kind", [LowRankConv2d, TuckerConv2d])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: type(a).__name__)
def test_a_low_rank_model_is_attacked_as_its_dense_equal(kind, attack):
    model = low_rank(kind)
    assert {type(m) for m in model.modules()} >= {kind, LowRankLinear}
    dense = copy.deepcopy(model)
    rw.densify_(dense)
    x, y = images(40)
    found, expected = (attack.perturb(m, x, y, 0.05) for m in (model, dense))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def adversarial_step(model, optimizer, x, y, attacked, attack):
    optimizer.zero_grad()
    model.train()
    shown = attack.perturb(attacked, x, y, 0.1)
    nn.functional.cross_entropy(model.eval()(shown), y).backward()
    optimizer.step()


@pytest.mark.parametrize("integrator", [AugmentedBUG(), AugmentedPSI(), ParallelBUG()], ids=told)
def test_attacks_inside_the_loop_leave_the_step_as_it_is(integrator):
    """The same inputs, made by a copy of the model that the optimizer knows nothing of."""
    inside, outside = low_rank(), low_rank()
    ends = []
    for model, own in ((inside, True), (outside, False)):
        optimizer = rw.Optimizer(model, integrator=integrator)
        for i in range(3):
            x, y = images(16, seed=i)
            attacked = model if own else copy.deepcopy(model)
            adversarial_step(model, optimizer, x, y, attacked, PGD(steps=3))
        assert (optimizer.steps, optimizer.skipped) == (3, 0)
        ends.append([p.detach().clone() for p in model.parameters()])
    assert not torch.equal(ends[0][0], next(low_rank().parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_an_attack_between_backward_and_step_leaves_it_too():
    models = [low_rank(), low_rank()]
    for i, model in enumerate(models):
        optimizer = rw.Optimizer(model.eval(), integrator=AugmentedBUG())
        x, y = images(16)
        nn.functional.cross_entropy(model(x), y).backward()
        if i:
            PGD(steps=3).perturb(model, x, y, 0.1)
        optimizer.step()
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(a, b)
