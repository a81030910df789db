"""AutoAttack by way of torchattacks; what of it needs that package runs where it is."""

import copy
import sys

import pytest
import torch
from torch import nn

from naming import told
from rankwise.robust import FGSM, L2, PGD, AutoAttack, Linf, Normalised, evaluate
from rankwise.robust.auto_attack import STANDARD, Setting, apgd, square, targeted_apgd, targeted_fab
from rankwise.robust.objective import right
from victims import assert_same_state, images, network, state_of

QUICK = {"steps": 10, "queries": 100}


@pytest.fixture
def package():
    return pytest.importorskip("torchattacks")


@pytest.fixture(scope="module")
def victim():
    """A network that has learnt 40 images by heart, float32."""
    x, y = images(40, dtype=torch.float32)
    net = network(dtype=torch.float32).eval()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert right(net(x), y).all()
    return net, x, y


EACH_MEMBER = pytest.mark.parametrize(
    "members",
    [STANDARD, *((m,) for m in STANDARD)],
    ids=["standard", *(m.__name__ for m in STANDARD)],
)


@EACH_MEMBER
@pytest.mark.parametrize("ball, eps", [(Linf(), 0.05), (L2(), 0.4)], ids=told)
def test_it_fools_and_stays_inside(package, victim, members, ball, eps):
    net, x, y = victim
    attack = AutoAttack(ball, members=members, **QUICK)
    found = attack.perturb(net, x, y, eps)
    assert (found.dtype, found.requires_grad) == (x.dtype, False)
    assert (ball.size(found - x) <= eps * (1 + 1e-5)).all()
    assert 0 <= found.min() and found.max() <= 1
    stands = right(net(found), y)
    assert not stands.all()
    assert torch.equal(found[stands], x[stands])


def test_more_members_fool_no_fewer(package, victim):
    net, x, y = victim
    one, all_four = (
        right(net(AutoAttack(members=m, **QUICK).perturb(net, x, y, 0.05)), y)
        for m in ((apgd,), STANDARD)
    )
    assert (all_four <= one).all()
    assert all_four.sum() < one.sum()


def test_the_full_one_is_as_strong_as_pgd_up_to_luck(package, victim):
    net, x, y = victim
    whole = AutoAttack(steps=30, members=STANDARD[:3])
    a, b = (right(net(m.perturb(net, x, y, 0.05)), y).sum() for m in (whole, PGD(restarts=2)))
    assert a <= b + 1 < len(x) / 2


def test_model_and_generators_are_left_as_they_were_and_calls_repeat(package, victim):
    trained, x, y = victim
    net = copy.deepcopy(trained).train()
    net[1].eval()
    net[4].weight.requires_grad_(False)
    before = state_of(net)
    attack = AutoAttack(**QUICK)
    found = attack.perturb(net, x, y, 0.05)
    assert_same_state(net, before)
    torch.rand(3)
    assert torch.equal(found, attack.perturb(net, x, y, 0.05))
    noisy = AutoAttack(members=(square,), **QUICK)
    a, b = (
        noisy.perturb(net, x, y, 0.05, generator=torch.Generator().manual_seed(s)) for s in (1, 2)
    )
    assert not torch.equal(a, b)


def test_in_an_evaluation_it_is_stronger_than_fgsm(package, victim):
    net, x, y = victim
    wrapped = Normalised(net, 0.0, 1.0)
    found = evaluate({"net": wrapped}, x, y, AutoAttack(**QUICK), [0.05], batch_size=16)
    clean, attacked = found.accuracy["net"]
    assert clean == 1.0 > attacked
    weak = evaluate({"net": wrapped}, x, y, FGSM(), [0.05]).accuracy["net"][1]
    assert attacked < weak


def test_members_are_made_as_asked_for(package, victim):
    net, *_ = victim
    setting = Setting(package, net, 4, 7, 9, {"norm": "L2", "eps": 0.2, "seed": 3})
    made = [member(setting) for member in STANDARD]
    assert [m.steps for m in made[:3]] == [7, 7, 7]
    assert made[3].n_queries == 9
    assert [m.n_target_classes for m in made[1:3]] == [3, 3]
    assert {(m.norm, m.eps, m.seed) for m in made} == {("L2", 0.2, 3)}


def test_no_more_targets_than_in_the_paper(package, victim):
    seen = []

    class Looks(Far):
        def __init__(self, setting):
            super().__init__(setting)
            seen.append(setting.classes)

    _, x, y = victim
    many = nn.Sequential(nn.Flatten(), nn.Linear(72, 50))
    for net in (victim[0], many):
        AutoAttack(members=(Looks,), **QUICK).perturb(net, x, y, 0.1)
    assert seen == [4, 10]


class Far:
    """A member that does not keep to its budget."""

    def __init__(self, setting):
        pass

    def set_device(self, device):
        assert device.type == "cpu"

    def __call__(self, x, y):
        return x + 3


def test_what_leaves_the_ball_is_put_back(package, victim):
    net, x, y = victim
    found = AutoAttack(members=(Far,), **QUICK).perturb(net, x, y, 0.1)
    torch.testing.assert_close(found, (x + 0.1).clamp(max=1.0))


def test_samples_already_wrong_are_left(package, victim):
    net, x, y = victim
    wrong = (y + 1) % 4
    assert torch.equal(AutoAttack(**QUICK).perturb(net, x, wrong, 0.1), x)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"bounds": None}, r"`bounds=\(0.0, 1.0\)`, got None.*`Normalised`"),
        ({"bounds": (0.0, 2.0)}, r"`bounds=\(0.0, 1.0\)`"),
        ({"x": torch.rand(12, 2, 6, 6).double(), "model": network()}, "float32 images"),
        ({"x": torch.rand(12, 8), "model": nn.Linear(8, 4)}, "float32 images"),
    ],
)
def test_other_inputs_are_refused(change, text):
    x, y = images(dtype=torch.float32)
    given = {"model": network(dtype=torch.float32), "x": x, "y": y, "eps": 0.1} | change
    with pytest.raises(ValueError, match=text):
        AutoAttack(**QUICK).perturb(**given)


def test_few_classes_have_no_targeted_loss(package):
    x, y = images(dtype=torch.float32)
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 3))
    with pytest.raises(ValueError, match="the model has 3; leave it out"):
        AutoAttack(**QUICK).perturb(net, x, y % 3, 0.1)
    y = net(x).argmax(1)
    members = (apgd, targeted_fab, square)
    found = AutoAttack(members=members, **QUICK).perturb(net, x, y, 0.1)
    assert not right(net(found), y).all()


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    x, y = images(dtype=torch.float32)
    with pytest.raises(ImportError, match="pip install --no-deps torchattacks.*pip install scipy"):
        AutoAttack().perturb(network(dtype=torch.float32), x, y, 0.1)


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: AutoAttack(ball="l2"), r"`AutoAttack\(ball=...\)`"),
        (lambda: AutoAttack(steps=0), r"`AutoAttack\(steps=...\)`"),
        (lambda: AutoAttack(queries=0), r"`AutoAttack\(queries=...\)`"),
        (lambda: AutoAttack(members=()), r"`AutoAttack\(members=...\)`"),
        (lambda: AutoAttack(members=("square",)), r"`AutoAttack\(members=...\)`"),
    ],
)
def test_options_out_of_range_are_refused_by_name(make, text):
    with pytest.raises((ValueError, TypeError), match=text):
        make()


def test_the_standard_is_all_four():
    assert AutoAttack().members == (apgd, targeted_apgd, targeted_fab, square)
