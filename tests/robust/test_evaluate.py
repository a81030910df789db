"""Accuracies under attack, of several models."""

import pytest
import torch
from torch import nn

from rankwise.robust import FGSM, PGD, Evaluation, MixupAttack, Noise, evaluate
from rankwise.robust.objective import right
from victims import assert_same_state, images, network, state_of, trained


def two():
    net, x, y = trained()
    other, *_ = trained(1)
    return {"one": net, "two": other}, x, y


def test_each_is_attacked_by_its_own_gradients():
    models, x, y = two()
    found = evaluate(models, x, y, FGSM(), [0.05, 0.1])
    assert found.eps == (0.0, 0.05, 0.1)
    for name, model in models.items():
        assert torch.equal(found.right[name][0], right(model(x), y))
        for i, eps in ((1, 0.05), (2, 0.1)):
            shown = FGSM().perturb(model, x, y, eps)
            assert torch.equal(found.right[name][i], right(model(shown), y))
        expected = found.right[name].double().mean(1).tolist()
        assert found.accuracy[name] == pytest.approx(expected)
        assert expected[0] > expected[1] > expected[2]


def test_in_transfer_all_are_shown_what_fools_the_surrogate():
    models, x, y = two()
    found = evaluate(models, x, y, FGSM(), [0.1], surrogate=models["two"])
    shown = FGSM().perturb(models["two"], x, y, 0.1)
    for name, model in models.items():
        assert torch.equal(found.right[name][1], right(model(shown), y))
    white = evaluate(models, x, y, FGSM(), [0.1])
    assert torch.equal(found.right["two"], white.right["two"])
    assert not torch.equal(found.right["one"], white.right["one"])


def test_batches_change_nothing_but_the_random_numbers():
    models, x, y = two()
    whole, parts = (evaluate(models, x, y, PGD(steps=3), [0.1], batch_size=n) for n in (200, 7))
    assert all(torch.equal(whole.right[name], parts.right[name]) for name in models)


def test_it_follows_its_seed_and_no_other_generator():
    models, x, y = two()
    state = torch.random.get_rng_state()
    a, b, c = (evaluate(models, x, y, Noise(), [0.2], seed=s, batch_size=50) for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(a.right["one"], b.right["one"])
    assert not torch.equal(a.right["one"], c.right["one"])


def test_all_models_and_budgets_see_the_same_random_numbers():
    class Records(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net, self.seen = net, []

        def forward(self, x):
            self.seen.append(x.clone())
            return self.net(x)

    net, x, y = trained()
    models = {name: Records(net) for name in ("a", "b")}
    evaluate(models, x, y, Noise(), [0.1, 0.2], bounds=None, batch_size=100)
    a, b = ([t for t in m.seen if len(t) == 100] for m in models.values())
    assert len(a) == len(b) == 2 * 3
    assert all(torch.equal(s, t) for s, t in zip(a, b, strict=True))
    torch.testing.assert_close((a[1] - a[0]) * 2, a[2] - a[0])
    assert not torch.allclose(a[1] - a[0], a[4] - a[3])


def test_the_models_stay_as_they_were():
    model, (x, y) = network().train(), images()
    before = state_of(model)
    evaluate({"it": model}, x, y, FGSM(), [0.1])
    assert_same_state(model, before)


def test_progress_is_told():
    models, x, y = two()
    calls = []
    evaluate(models, x, y, FGSM(), [0.1], batch_size=150, progress=lambda *call: calls.append(call))
    assert calls == [(i + 1, 8) for i in range(8)]
    calls.clear()
    evaluate(models, x, y, FGSM(), [0.1], surrogate=models["one"],
             progress=lambda *call: calls.append(call))  # fmt: skip
    assert calls == [(1, 2), (2, 2)]


def test_a_budget_of_zero_is_the_clean_one():
    models, x, y = two()
    assert evaluate(models, x, y, FGSM(), [0.0, 0.1]).eps == (0.0, 0.1)
    assert evaluate(models, x, y, FGSM(), []).eps == (0.0,)


def test_results_compare_sample_by_sample():
    found = Evaluation((0.0,), {"a": torch.tensor([[True, False, True, True]])})
    assert found.accuracy == {"a": (0.75,)}


@pytest.mark.parametrize(
    "change, error, text",
    [
        ({"models": network()}, TypeError, "`models` must map names to models"),
        ({"models": {}}, TypeError, "`models` must map"),
        ({"models": {"a": 1}}, TypeError, "`model` must be a torch.nn.Module"),
        ({"surrogate": 1}, TypeError, "`model` must be a torch.nn.Module"),
        ({"attack": FGSM}, TypeError, "`attack` must be one of rankwise.robust"),
        ({"eps": [0.1, -1.0]}, ValueError, "`eps` must be finite"),
        ({"eps": 0.1}, TypeError, "`eps` must be several numbers"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"y": torch.full((12,), 9)}, ValueError, "labels from 9"),
        ({"x": images()[0] * 3}, ValueError, "outside `bounds`"),
        ({"attack": MixupAttack(), "batch_size": 1}, ValueError, "one label"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, text):
    x, y = images()
    given = {"models": {"a": network()}, "x": x, "y": y, "attack": FGSM(), "eps": [0.1]} | change
    with pytest.raises(error, match=text):
        evaluate(**given)
