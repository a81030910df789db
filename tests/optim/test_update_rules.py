"""What every update rule promises: independence of the basis, and reduction to known methods."""

import pytest
import torch
from torch import Tensor

from rankwise.numerics.factors import Factors
from rankwise.numerics.init import zero_core
from rankwise.numerics.orth import orthonormalise
from rankwise.numerics.retract import core_of, frame_of
from rankwise.numerics.tangent import Tangent, project
from rankwise.optim.adam import Adam, scale_sides
from rankwise.optim.spectral import Spectral
from rankwise.optim.update_rule import SGD, HeavyBall, UpdateRule

RULES = [SGD(), HeavyBall(0.8), Adam(), Adam(power=0.25, spectrum=1.0), Spectral()]
SHAPES = [(7, 5, 3), (5, 8, 1), (6, 6, 6)]


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(*shape: int, draw: torch.Generator) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=draw)


def random_factors(m: int, n: int, r: int, draw: torch.Generator) -> Factors:
    like = torch.zeros((), dtype=torch.float64)
    return zero_core(m, n, r, like=like, generator=draw)._replace(S=normal(r, r, draw=draw))


def dense_direction(rule: UpdateRule, f: Factors, gradient: Tangent, state: dict) -> Tensor:
    """The direction as the matrix that the optimizer subtracts."""
    D = rule.direction(f, gradient, state)
    frame = frame_of(f, D)
    core = core_of(frame.U_hat.mT @ D.K, frame.V_hat.mT @ D.L, D.C)
    return frame.U_hat @ rule.core(core) @ frame.V_hat.mT


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("m, n, r", SHAPES)
def test_directions_do_not_depend_on_the_basis(rule, m, n, r, draw):
    f = random_factors(m, n, r, draw)
    Q, R = orthonormalise(normal(r, r, draw=draw)), orthonormalise(normal(r, r, draw=draw))
    turned = Factors(f.U @ Q, Q.mT @ f.S @ R, f.V @ R)
    state, turned_state = {}, {}
    for _ in range(3):
        G = normal(m, n, draw=draw)
        one = dense_direction(rule, f, project(f, G), state)
        other = dense_direction(rule, turned, project(turned, G), turned_state)
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rule", [Adam(), Spectral()], ids=repr)
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_normalised_rules_ignore_the_scale_of_the_loss(rule, scale, draw):
    f = random_factors(7, 5, 3, draw)
    G = normal(7, 5, draw=draw)
    one = dense_direction(rule, f, project(f, G), {})
    other = dense_direction(rule, f, project(f, scale * G), {})
    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_zero_gradient_gives_a_zero_direction(rule, draw):
    f = random_factors(7, 5, 3, draw)
    zero = Tangent(torch.zeros_like(f.U), torch.zeros_like(f.V), torch.zeros_like(f.S))
    assert dense_direction(rule, f, zero, {}).abs().max() == 0


def test_sgd_takes_the_projected_gradient(draw):
    f, G = random_factors(7, 5, 3, draw), normal(7, 5, draw=draw)
    expected = project(f, G).dense(f)
    torch.testing.assert_close(dense_direction(SGD(), f, project(f, G), {}), expected)


def test_heavy_ball_sums_the_past(draw):
    f, state = random_factors(7, 5, 3, draw), {}
    G, H = normal(7, 5, draw=draw), normal(7, 5, draw=draw)
    dense_direction(HeavyBall(0.8), f, project(f, G), state)
    result = dense_direction(HeavyBall(0.8), f, project(f, H), state)
    torch.testing.assert_close(result, project(f, 0.8 * G + H).dense(f))


@pytest.mark.parametrize("m, n, r", SHAPES)
def test_scaling_both_sides_is_the_projection_of_the_scaled_matrix(m, n, r, draw):
    f = random_factors(m, n, r, draw)
    xi = project(f, normal(m, n, draw=draw))
    row, column = normal(m, draw=draw).abs(), normal(n, draw=draw).abs()
    expected = project(f, row[:, None] * xi.dense(f) * column).dense(f)
    torch.testing.assert_close(scale_sides(f, xi, row, column).dense(f), expected)


def test_first_adam_step_without_powers_is_the_normalised_gradient(draw):
    f, G = random_factors(7, 5, 3, draw), normal(7, 5, draw=draw)
    gradient = project(f, G).dense(f)
    expected = gradient / gradient.norm()
    result = dense_direction(Adam(power=0.0, spectrum=1.0), f, project(f, G), {})
    torch.testing.assert_close(result, expected)


def test_adam_forgets_a_row_scaling_of_the_loss_at_full_rank(draw):
    # At r = m = n and power 1/2 a rescaled row of the gradient comes back at its old size.
    f, G = random_factors(6, 6, 6, draw), normal(6, 6, draw=draw)
    factor = torch.tensor([1.0, 10.0, 0.1, 3.0, 1.0, 1.0], dtype=torch.float64)
    D = dense_direction(Adam(eps=0.0, spectrum=1.0), f, project(f, factor[:, None] * G), {})
    rows = D.norm(dim=1)
    assert rows.max() / rows.min() < 6 < factor.max() / factor.min()


def test_spectral_direction_is_the_polar_factor_of_the_momentum(draw):
    f, G = random_factors(7, 6, 2, draw), normal(7, 6, draw=draw)
    P, sigma, Qh = torch.linalg.svd(project(f, G).dense(f), full_matrices=False)
    polar = P[:, :4] @ Qh[:4] / 2
    torch.testing.assert_close(dense_direction(Spectral(), f, project(f, G), {}), polar)
    assert sigma[4] < 1e-12


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: HeavyBall(1.0), "momentum"),
        (lambda: HeavyBall(-0.1), "momentum"),
        (lambda: Adam(betas=(0.9, 1.0)), "betas"),
        (lambda: Adam(power=2.0), "power"),
        (lambda: Spectral(momentum=1.5), "momentum"),
    ],
)
def test_values_out_of_range_are_named(make, name):
    with pytest.raises(ValueError, match=name):
        make()
