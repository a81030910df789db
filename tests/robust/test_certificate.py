"""Certified radii: exact where that can be known, and never beyond what an attack finds."""

import math

import pytest
import torch
from torch import nn

from classifiers import clouds, cnn, fitted, mlp
from rankwise.robust import certified_accuracy, certified_radius, enclosing_radius, lipschitz_bound


def smallest_change(model, x, y, steps=50, tries=12):
    """The least l2 distance at which descent on a sphere changes an answer, inf where none does."""
    least = torch.full((len(x),), math.inf, dtype=x.dtype)
    for radius in torch.logspace(-2, 1, tries, dtype=x.dtype):
        d = torch.randn_like(x)
        for _ in range(steps):
            d = onto_sphere(d, radius).requires_grad_()
            loss = nn.functional.cross_entropy(model(x + d), y, reduction="sum")
            (g,) = torch.autograd.grad(loss, d)
            d = d.detach() + 0.3 * onto_sphere(g, radius)
        d = onto_sphere(d, radius)
        with torch.no_grad():
            wrong = model(x + d).argmax(1) != y
        least = torch.where(wrong, least.clamp_max(radius), least)
    return least


def onto_sphere(d, radius):
    norms = d.flatten(1).norm(dim=1).clamp_min(1e-30)
    return d * (radius / norms).reshape(-1, *[1] * (d.ndim - 1))


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("rounds", [0, 30])
def test_no_attack_on_an_mlp_gets_inside(rank, rounds):
    x, y = clouds(60, 6)
    model = fitted(mlp(6, 16, 12, 3, rank=rank), x, y)
    radii, found = certified_radius(model, x, y, rounds=rounds), smallest_change(model, x, y)
    right = model(x).argmax(1) == y
    assert right.float().mean() > 0.8
    assert torch.equal(radii > 0, right)
    assert (radii[right] <= found[right]).all()
    assert radii[right].mean() > 0.05 * found[right & found.isfinite()].mean()


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2)])
def test_no_attack_on_a_cnn_gets_inside(pool):
    x, y = clouds(30, 128)
    x = x.reshape(-1, 2, 8, 8)
    model = fitted(cnn(pool=pool).train(), x, y, steps=20)
    radii, found = certified_radius(model, x, y), smallest_change(model, x, y, tries=6)
    right = model(x).argmax(1) == y
    assert right.any() and torch.equal(radii > 0, right)
    assert (radii[right] <= found[right]).all()


def test_of_a_linear_classifier_it_is_the_distance_to_the_nearest_boundary():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4).double())
    x = torch.randn(20, 2, 3, dtype=torch.float64)
    y = model(x).argmax(1)
    W, b = model[1].weight.detach(), model[1].bias.detach()
    z = x.flatten(1)
    for row, own, radius in zip(z, y, certified_radius(model, x, y), strict=True):
        others = [j for j in range(4) if j != own]
        distances = [
            ((W[own] - W[j]) @ row + b[own] - b[j]) / (W[own] - W[j]).norm() for j in others
        ]
        assert radius == pytest.approx(min(distances).item(), rel=1e-6)


def test_pairs_are_never_worse_than_the_constant_of_all():
    x, y = clouds(30, 6)
    model = mlp(6, 16, 12, 3)
    logits = model(x).detach()
    own = logits.gather(1, y[:, None])
    margins = (own - logits).scatter(1, y[:, None], math.inf).amin(1).clamp_min(0)
    coarse = margins / (2**0.5 * lipschitz_bound(model, x, rounds=0))
    radii = certified_radius(model, x, y, rounds=0)
    assert (radii >= coarse * (1 - 1e-6)).all() and radii.mean() > 1.1 * coarse.mean()


def test_an_end_that_is_no_linear_map_takes_the_constant_of_all():
    model = nn.Sequential(nn.GELU())
    x = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
    logits = model(x)[0]
    expected = (logits[0] - logits[1]) / (2**0.5 * lipschitz_bound(model, x))
    radius = certified_radius(model, x, torch.tensor([0]))
    assert radius.item() == pytest.approx(expected.item(), rel=1e-6)


def test_rows_are_independent_and_batches_change_nothing():
    x, y = clouds(600, 6)
    model = mlp(6, 8, 3)
    radii = certified_radius(model, x, y)
    assert radii.shape == (600,) and radii.dtype is torch.float64
    torch.testing.assert_close(certified_radius(model, x[590:], y[590:]), radii[590:])


def test_float32_models_are_certified_in_float64_and_left_alone():
    x, y = clouds(30, 6)
    model = mlp(6, 8, 3, rank=2).float().train()
    radii = certified_radius(model, x.float(), y)
    assert model.training and next(model.parameters()).dtype is torch.float32
    torch.testing.assert_close(certified_radius(model.double(), x, y), radii, rtol=1e-4, atol=1e-6)


def test_constant_outputs_ties_and_margins_within_rounding():
    model = nn.Sequential(nn.Linear(3, 2)).double()
    nn.init.zeros_(model[0].weight)
    x = torch.randn(2, 3, dtype=torch.float64)
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([1.0, 0.0]))
    right, wrong = certified_radius(model, x, torch.tensor([0, 1]))
    assert right > 1e50 and wrong == 0.0
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([1e9 + 0.1, 1e9], dtype=torch.float64))
    assert certified_radius(model, x, torch.tensor([0, 1])).tolist() == [0.0, 0.0]
    nn.init.zeros_(model[0].bias)
    assert certified_radius(model, x, torch.tensor([0, 1])).tolist() == [0.0, 0.0]


def test_accuracy_is_the_share_of_radii_beyond_and_a_cube_is_in_its_ball():
    radii = torch.tensor([0.0, 0.1, 0.2, 0.4], dtype=torch.float64)
    assert [certified_accuracy(radii, eps) for eps in (0.0, 0.1, 0.3, 1.0)] == [0.75, 0.5, 0.25, 0]
    x = torch.zeros(5, 1, 4, 4)
    corner = torch.full((16,), 0.03, dtype=torch.float64)
    assert corner.norm() <= enclosing_radius(0.03, x) <= corner.norm() * (1 + 1e-8)
    with pytest.raises(ValueError, match="`eps` must be at least 0, got -1"):
        certified_accuracy(radii, -1.0)


@pytest.mark.parametrize(
    "y, told",
    [
        (torch.zeros(4, dtype=torch.long), r"one integer for each of the 5 rows.*\(4,\)"),
        (torch.zeros(5), "one integer for each of the 5 rows.*float32"),
        (torch.tensor([0, 1, 2, 3, 0]), "classes from 0 to 2, got 0 to 3"),
        (torch.tensor([0, -1, 2, 0, 0]), "classes from 0 to 2, got -1 to 2"),
    ],
)
def test_labels_are_checked(y, told):
    with pytest.raises(ValueError, match=told):
        certified_radius(mlp(6, 8, 3), torch.randn(5, 6, dtype=torch.float64), y)


def test_outputs_are_checked():
    x, y = torch.randn(2, 6, dtype=torch.float64), torch.tensor([0, 0])
    with pytest.raises(ValueError, match=r"two classes or more, got \(1, 1\)"):
        certified_radius(mlp(6, 1), x, y)
    model = mlp(6, 8, 3)
    with torch.no_grad():
        model[0].bias[0] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite outputs"):
        certified_radius(model, x, y)


def test_under_autocast_it_is_the_same():
    x, y = clouds(20, 5)
    model = fitted(mlp(5, 8, 3, rank=2), x, y)
    alone = certified_radius(model, x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(certified_radius(model, x, y), alone)
