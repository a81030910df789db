"""What all attacks promise: where the result lies, what is left alone, what is refused."""

import pytest
import torch
from torch import nn

from naming import told
from rankwise.robust import (
    FGSM,
    L2,
    PGD,
    Attack,
    IteratedFGSM,
    Jitter,
    Linf,
    MixupAttack,
    Noise,
    ScaledFGSM,
)
from rankwise.robust.objective import margin
from victims import Output, assert_same_state, images, network, state_of

ATTACKS = [
    FGSM(),
    FGSM(L2()),
    ScaledFGSM(),
    PGD(steps=4, restarts=2),
    PGD(L2(), steps=4, restarts=2),
    PGD(steps=4, objective=margin),
    IteratedFGSM(steps=4),
    Jitter(),
    MixupAttack(),
    Noise(),
    Noise(L2()),
]
EACH = pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: told(a).partition("objective")[0])
RANDOM = [Jitter(noise=3.0), Noise(), Noise(L2())]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@EACH
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-0.5, 1.2), None])
@pytest.mark.parametrize("eps", [0.01, 0.3, 5.0])
def test_results_are_in_the_ball_and_in_bounds(attack, eps, bounds):
    x, y = images()
    found = attack.perturb(network(), x, y, eps, bounds=bounds)
    assert (found.shape, found.dtype, found.requires_grad) == (x.shape, x.dtype, False)
    assert (attack.ball.size(found - x) <= eps * (1 + 1e-12)).all()
    assert (attack.ball.size(found - x) > 0).all()
    if bounds is not None:
        assert bounds[0] <= found.min() and found.max() <= bounds[1]


@EACH
def test_no_budget_no_change(attack):
    x, y = images()
    found = attack.perturb(network(), x, y, 0)
    assert torch.equal(found, x) and found is not x


@EACH
def test_the_model_and_torch_are_left_as_they_were(attack):
    model = network().train()
    model[1].eval()
    model[3].eval()
    model[0].weight.requires_grad_(False)
    x, y = images()
    model(x).sum().backward()
    inputs = x.clone(), y.clone()
    before = state_of(model)
    attack.perturb(model, x, y, 0.1)
    assert_same_state(model, before)
    assert torch.equal(x, inputs[0]) and torch.equal(y, inputs[1])


@EACH
def test_on_an_exception_too(attack):
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.passes = network().train(), 0

        def forward(self, x):
            self.passes += 1
            if self.passes == 2:
                raise RuntimeError("stop")
            return self.net(x)

    model = Breaks()
    before = state_of(model)
    if isinstance(attack, Noise):
        model.passes = 1
    with pytest.raises(RuntimeError, match="stop"):
        attack.perturb(model, *images(), 0.1)
    assert_same_state(model, before)


@EACH
def test_dropout_and_batch_statistics_take_no_part(attack):
    x, y = images()
    training, evaluating = network().train(), network().eval()
    for model in (training, evaluating):
        # Dropout would draw from here.
        torch.manual_seed(5 if model is training else 6)
    assert torch.equal(attack.perturb(training, x, y, 0.1), attack.perturb(evaluating, x, y, 0.1))


@EACH
def test_calls_repeat(attack):
    x, y = images()
    model = network()
    a = attack.perturb(model, x, y, 0.1)
    torch.rand(7)
    assert torch.equal(a, attack.perturb(model, x, y, 0.1))
    b, c = (attack.perturb(model, x, y, 0.1, generator=seeded(3)) for _ in range(2))
    assert torch.equal(b, c)


@pytest.mark.parametrize("ball", [Linf(), L2()], ids=told)
def test_noise_is_on_the_surface_of_its_ball(ball):
    x, y = images()
    found = Noise(ball).perturb(network(), x, y, 0.2, bounds=None)
    torch.testing.assert_close(ball.size(found - x), torch.full((12,), 0.2, dtype=x.dtype))
    if ball == Linf():
        torch.testing.assert_close((found - x).abs(), torch.full_like(x, 0.2))


@pytest.mark.parametrize("attack", RANDOM, ids=told)
def test_random_ones_follow_their_generator(attack):
    x, y = images()
    model = network()
    draw = seeded(0)
    a, b = (attack.perturb(model, x, y, 0.5, generator=draw) for _ in range(2))
    assert not torch.equal(a, b)
    assert torch.equal(a, attack.perturb(model, x, y, 0.5, generator=seeded(0)))


@pytest.mark.parametrize("attack", [a for a in ATTACKS if not isinstance(a, MixupAttack)], ids=told)
def test_a_batch_of_one(attack):
    x, y = images(1)
    found = attack.perturb(network(), x, y, 0.1)
    assert found.shape == x.shape and not torch.equal(found, x)


@pytest.mark.parametrize("attack", [FGSM(), FGSM(L2()), ScaledFGSM(), PGD(), PGD(L2())], ids=told)
def test_a_sample_does_not_depend_on_its_batch(attack):
    x, y = images()
    together = attack.perturb(network(), x, y, 0.1)
    alone = torch.cat(
        [attack.perturb(network(), x[i : i + 1], y[i : i + 1], 0.1) for i in range(len(x))]
    )
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@EACH
@pytest.mark.parametrize(
    "function",
    [
        torch.round,
        torch.detach,
        lambda z: z * torch.nan,
        lambda z: z * torch.inf,
        lambda z: z * 1e300 * 1e10,
        lambda z: z - z,
        lambda z: torch.ones_like(z),
        lambda z: z.detach().sqrt() - z * 0 / 0,
    ],
)
def test_gradients_that_are_zero_or_not_finite_move_nothing(attack, function):
    x, y = images()
    found = attack.perturb(Output(function), x, y, 0.1)
    assert found.isfinite().all()
    assert (attack.ball.size(found - x) <= 0.1 * (1 + 1e-12)).all()
    if isinstance(attack, (FGSM, ScaledFGSM, IteratedFGSM)):
        assert torch.equal(found, x)


@pytest.mark.parametrize("attack", [FGSM(), PGD(), Jitter(), MixupAttack()], ids=told)
def test_under_inference_mode(attack):
    x, y = images()
    expected = attack.perturb(network(), x, y, 0.1)
    model = network()
    with torch.inference_mode():
        found = attack.perturb(model, x.clone(), y.clone(), 0.1)
    assert torch.equal(found, expected)


def test_labels_of_other_integer_types():
    x, y = images()
    for kind in (torch.int32, torch.uint8):
        assert torch.equal(
            FGSM().perturb(network(), x, y.to(kind), 0.1), FGSM().perturb(network(), x, y, 0.1)
        )


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@EACH
def test_other_floating_types(attack, kind):
    x, y = images(dtype=kind)
    found = attack.perturb(network(dtype=kind), x, y, 0.1)
    assert found.dtype == kind
    assert not torch.equal(found, x)


def test_all_of_them_are_attacks_that_compare_by_value():
    assert all(isinstance(a, Attack) for a in ATTACKS)
    assert PGD(steps=3) == PGD(steps=3) != PGD(steps=4)
    assert PGD().ball == Linf() == Jitter().ball
