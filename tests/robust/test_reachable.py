"""Ellipsoids through linear maps and activations, against whole matrices."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.robust.reachable import (
    Ellipsoid,
    Sphere,
    activated,
    as_ball,
    as_ellipsoid,
    mapped,
    spectral_norm,
)

EYE = torch.eye(6, dtype=torch.float64)


def matrix(e: Ellipsoid) -> torch.Tensor:
    return e.axes.square().diag() + e.factor @ e.factor.mT


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def multipliers(Y: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    mean = logits.mean()
    w = (logits - mean).exp()
    root = w.sqrt()
    return 4 * mean.sigmoid() * w / torch.linalg.matrix_norm(root[:, None] * Y * root, 2)


@pytest.mark.parametrize("rank", [0, 1, 4, 6, 9])
@pytest.mark.parametrize("ball", [False, True])
@pytest.mark.parametrize("seed", [None, 3])
def test_an_activation_gives_the_inverse_of_the_recursion(rank, ball, seed):
    axes = torch.full((6,), 0.7 if ball or not rank else 0.0, dtype=torch.float64)
    before = Ellipsoid(axes, random(6, rank))
    logits = torch.zeros(6, dtype=torch.float64) if seed is None else random(6, seed=seed)
    after = activated(before, 1.0, logits)
    Y = matrix(before)
    lam = multipliers(Y, logits)
    X = lam.diag() - lam[:, None] * Y * lam / 4
    assert torch.linalg.eigvalsh(X)[0] > 0
    torch.testing.assert_close(matrix(after) @ X, EYE, rtol=1e-7, atol=1e-7)


def test_zero_logits_are_the_closed_form():
    Y = matrix(before := Ellipsoid(torch.zeros(6, dtype=torch.float64), random(6, 2)))
    lam = 2 / torch.linalg.matrix_norm(Y, 2)
    X = lam * EYE - lam**2 / 4 * Y
    after = activated(before, 1.0, torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(matrix(after) @ X, EYE, rtol=1e-8, atol=1e-8)


@given(st.integers(0, 2**20), st.integers(1, 7), st.floats(0.1, 3.0), st.floats(0.0, 8.0))
def test_what_was_in_the_ellipsoid_is_in_it_after_any_slopes(seed, rank, largest, reachable):
    e = Ellipsoid(random(6, seed=seed).abs(), random(6, rank, seed=seed))
    after = activated(e, largest, reachable * random(6, seed=seed + 1))
    directions = torch.nn.functional.normalize(random(e.root().shape[1], 50, seed=seed + 2), dim=0)
    slopes = torch.rand(6, 50, generator=torch.Generator().manual_seed(seed)).double()
    slopes[:, ::2] = slopes[:, ::2].round()
    d = largest * slopes * (e.root() @ directions)
    assert (d * torch.linalg.solve(matrix(after), d)).sum(0).max() <= 1.0


@given(st.integers(0, 2**20), st.integers(1, 8))
def test_closed_forms_are_never_worse_than_the_ball(seed, rank):
    e = mapped(
        as_ellipsoid(Sphere(0.5), 7), [random(6, rank, seed=seed), random(rank, 7, seed=seed)]
    )
    after = activated(e, 1.0, torch.zeros(6, dtype=torch.float64))
    assert after.radius <= e.radius * (1 + 1e-7)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_map_in_factors_is_the_map(rank):
    e = Ellipsoid(random(8).abs(), random(8, 2))
    U, S, V = random(6, rank), random(rank, rank), random(rank, 8)
    S[0] = 0
    W = U @ S @ V
    torch.testing.assert_close(matrix(mapped(e, [U, S, V])), W @ matrix(e) @ W.mT)
    torch.testing.assert_close(matrix(mapped(e, [W])), W @ matrix(e) @ W.mT)
    assert mapped(e, [U, S, V]).factor.shape == (6, rank)


def test_a_scaling_is_a_diagonal_map():
    e = Ellipsoid(random(6), random(6, 2))
    g = torch.tensor([1.0, -2, 0, 3, 1e-3, 1], dtype=torch.float64)
    torch.testing.assert_close(matrix(e.scaled(g)), g[:, None] * matrix(e) * g)


def test_radius_and_ball():
    e = Ellipsoid(random(6), random(6, 2))
    exact = torch.linalg.matrix_norm(matrix(e), 2).sqrt()
    assert exact <= e.radius <= exact * (1 + 1e-8)
    assert as_ball(e) == Sphere(e.radius)
    assert as_ellipsoid(e, 6) is e
    assert as_ellipsoid(Sphere(2.0), 6).radius == pytest.approx(2.0)
    assert spectral_norm(torch.zeros(3, 2, dtype=torch.float64)) == 0.0


def test_zero_stays_zero_and_equal_singular_values_are_no_case():
    zeros = torch.zeros(6, dtype=torch.float64)
    e = mapped(as_ellipsoid(Sphere(1.0), 4), [torch.zeros(6, 4, dtype=torch.float64)])
    assert activated(e, 1.0, zeros).radius <= 1e-90
    logits = zeros.clone().requires_grad_()
    after = activated(Ellipsoid(zeros, 3 * EYE), 1.0, logits)
    assert after.radius == pytest.approx(3.0)
    after.root().square().sum().backward()
    assert logits.grad.isfinite().all()
