"""Models of normalised inputs, attacked in pixels."""

import pytest
import torch

from rankwise.robust import FGSM, Normalised
from victims import images, network

MEAN, DEVIATION = (0.4, 0.6), (0.2, 0.3)


def constant(values):
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)


def test_it_normalises_each_channel():
    x, _ = images()
    net = network().eval()
    expected = net((x - constant(MEAN)) / constant(DEVIATION))
    wrapped = Normalised(net, MEAN, DEVIATION).double()
    torch.testing.assert_close(wrapped(x), expected, rtol=1e-5, atol=1e-5)
    one = Normalised(net, 0.4, DEVIATION)
    torch.testing.assert_close(
        one(x), net((x - constant([0.4])) / constant(DEVIATION)), rtol=1e-5, atol=1e-5
    )


def test_an_attack_on_pixels_is_one_on_normalised_values_divided_by_the_deviation():
    x, y = images()
    net = network().eval()
    found = FGSM().perturb(Normalised(net, MEAN, DEVIATION), x, y, 0.01, bounds=None)
    normalised = (x - constant(MEAN)) / constant(DEVIATION)
    moved = (found - constant(MEAN)) / constant(DEVIATION)
    torch.testing.assert_close(
        (moved - normalised).abs(), (0.01 / constant(DEVIATION)).expand_as(x), rtol=1e-9, atol=0
    )
    direct = FGSM().perturb(net, normalised, y, 0.01, bounds=None)
    assert torch.equal((direct - normalised).sign(), (moved - normalised).sign())


def test_its_numbers_follow_the_model():
    wrapped = Normalised(network(), MEAN, DEVIATION).to(torch.bfloat16)
    x, _ = images(dtype=torch.bfloat16)
    assert wrapped.eval()(x).dtype == torch.bfloat16
    assert {"mean", "deviation"} < set(wrapped.state_dict())
    assert not {"mean", "deviation"} & {name for name, _ in wrapped.named_parameters()}


@pytest.mark.parametrize(
    "mean, deviation, error, text",
    [
        (0.5, 0.0, ValueError, "`deviation` must be > 0, got 0.0"),
        (0.5, (0.2, -0.1), ValueError, "`deviation` must be > 0"),
        (0.5, torch.inf, ValueError, "`deviation` must be finite"),
        (torch.nan, 0.2, ValueError, "`mean` must be finite"),
        ((), 0.2, ValueError, "`mean` must be finite numbers"),
        ((0.1, 0.2), (0.1, 0.2, 0.3), ValueError, "2 numbers and `deviation` 3"),
        (None, 0.2, TypeError, "`mean` must be a number or one for each channel, got None"),
        ("grey", 0.2, TypeError, "`mean` must be a number"),
    ],
)
def test_what_does_not_fit_is_refused(mean, deviation, error, text):
    with pytest.raises(error, match=text):
        Normalised(network(), mean, deviation)


def test_other_channels_and_models_are_refused():
    with pytest.raises(ValueError, match=r"\(rows, 3, ...\).*got \(12, 2, 6, 6\)"):
        Normalised(network(), (0.1, 0.2, 0.3), 0.2)(images()[0])
    with pytest.raises(TypeError, match="`model` must be a torch.nn.Module"):
        Normalised(len, 0.5, 0.5)
