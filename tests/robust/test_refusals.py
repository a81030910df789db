"""What attacks refuse, and that they name it."""

import pytest
import torch
from torch import nn

from naming import told
from rankwise.robust import FGSM, PGD, IteratedFGSM, Jitter, MixupAttack, Noise
from victims import CLASSES, Output, images, network


@pytest.mark.parametrize(
    "change, error, text",
    [
        ({"model": abs}, TypeError, "`model` must be a torch.nn.Module"),
        ({"x": [[0.0]]}, TypeError, "`x` must be a tensor"),
        ({"y": 3}, TypeError, "`y` must be a tensor"),
        ({"x": torch.zeros(12, 2, 6, 6, dtype=torch.uint8)}, TypeError, "x.float.. / 255"),
        ({"x": torch.zeros(12)}, ValueError, r"`x` must be \(rows"),
        ({"x": torch.zeros(0, 2, 6, 6)}, ValueError, "not empty"),
        ({"y": torch.zeros(12)}, TypeError, "try `y.long"),
        ({"y": torch.zeros(12, dtype=torch.bool)}, TypeError, "integer class labels"),
        ({"y": torch.zeros(11, dtype=torch.long)}, ValueError, r"must be \(12,\)"),
        ({"y": torch.zeros(12, 1, dtype=torch.long)}, ValueError, r"must be \(12,\)"),
        ({"y": torch.full((12,), CLASSES)}, ValueError, "labels from 4 to 4.*classes 0 to 3"),
        ({"y": torch.full((12,), -1)}, ValueError, "labels from -1"),
        ({"x": images()[0] * torch.inf}, ValueError, "not finite"),
        ({"x": images()[0] * torch.nan}, ValueError, "not finite"),
        ({"x": images()[0] - 0.5}, ValueError, "outside `bounds`.*bounds=None"),
        ({"eps": -0.1}, ValueError, "`eps` must be finite and >= 0, got -0.1"),
        ({"eps": torch.nan}, ValueError, "`eps` must be finite"),
        ({"eps": torch.inf}, ValueError, "`eps` must be finite"),
        ({"eps": "8/255"}, TypeError, "`eps` must be a number"),
        ({"bounds": (1.0, 0.0)}, ValueError, "`bounds` must be finite, the first below"),
        ({"bounds": 1.0}, ValueError, "`bounds` must be .lowest, highest."),
        ({"bounds": (0.0, torch.inf)}, ValueError, "`bounds` must be finite"),
        ({"model": nn.Flatten(0)}, ValueError, r"logits \(rows, classes\)"),
        ({"model": Output(lambda z: z[:, :1])}, ValueError, "one class"),
        ({"model": Output(lambda z: (z,))}, TypeError, "logits as a tensor, got tuple"),
        ({"model": Output(lambda z: z.long())}, ValueError, "floating logits"),
        ({"model": Output(lambda z: z.T)}, ValueError, r"shape \(4, 1\) for one row"),
    ],
)
@pytest.mark.parametrize("attack", [FGSM(), Noise(), MixupAttack()], ids=told)
def test_what_does_not_fit_is_refused_by_name(attack, change, error, text):
    x, y = images()
    given = {"model": network(), "x": x, "y": y, "eps": 0.1, "bounds": (0.0, 1.0)} | change
    bounds = given.pop("bounds")
    with pytest.raises(error, match=text):
        attack.perturb(**given, bounds=bounds)


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: PGD(steps=0), r"`PGD\(steps=...\)` must be an integer >= 1, got 0"),
        (lambda: PGD(restarts=1.5), r"`PGD\(restarts=...\)`"),
        (lambda: PGD(step=0.0), r"`PGD\(step=...\)` must be finite and > 0"),
        (lambda: PGD(ball="l2"), r"`PGD\(ball=...\)` must be `Linf\(\)` or `L2\(\)`, got 'l2'"),
        (lambda: FGSM(ball=2), r"`FGSM\(ball=...\)`"),
        (lambda: Noise(ball=None), r"`Noise\(ball=...\)`"),
        (lambda: IteratedFGSM(steps=True), r"`IteratedFGSM\(steps=...\)`"),
        (lambda: Jitter(scale=0), r"`Jitter\(scale=...\)`"),
        (lambda: Jitter(noise=-1), r"`Jitter\(noise=...\)` must be finite and >= 0"),
        (lambda: Jitter(step=-1), r"`Jitter\(step=...\)`"),
        (lambda: MixupAttack(momentum=-1), r"`MixupAttack\(momentum=...\)`"),
        (lambda: MixupAttack(weight=torch.inf), r"`MixupAttack\(weight=...\)`"),
        (lambda: MixupAttack(halvings=(-1,)), r"`MixupAttack\(halvings=...\)`"),
    ],
)
def test_options_out_of_range_are_refused_by_name(make, text):
    with pytest.raises((ValueError, TypeError), match=text):
        make()
