"""Tangent vectors in factored form against the dense formulas."""

import pytest
import torch

from cases import (
    SHAPES_AND_RANKS,
    SPECTRA,
    close,
    dense_projection,
    factors,
    normal,
)
from rankwise.numerics.tangent import Tangent, inner, inner_product, project, squared_norm


@pytest.fixture(params=SHAPES_AND_RANKS, ids=str)
def f(request, draw):
    m, n, r = request.param
    return factors(m, n, SPECTRA["generic"](r), draw)


def test_projection_is_the_dense_formula(f, draw):
    G = normal(*f.shape, draw=draw)
    close(project(f, G).dense(f), dense_projection(f, G))


def test_projection_is_idempotent(f, draw):
    once = project(f, normal(*f.shape, draw=draw))
    twice = project(f, once.dense(f))
    for a, b in zip(once, twice, strict=True):
        close(a, b)


def test_projection_is_self_adjoint(f, draw):
    G, H = normal(*f.shape, draw=draw), normal(*f.shape, draw=draw)
    close((project(f, G).dense(f) * H).sum(), (G * project(f, H).dense(f)).sum())


def test_what_is_projected_out_is_orthogonal_to_the_tangent_space(f, draw):
    G = normal(*f.shape, draw=draw)
    normal_part = G - project(f, G).dense(f)
    close(normal_part @ f.V, torch.zeros_like(f.U))
    close(normal_part.mT @ f.U, torch.zeros_like(f.V))


def test_projection_is_the_nearest_tangent_vector(f, draw):
    G = normal(*f.shape, draw=draw)
    xi = project(f, G).dense(f)
    other = xi + 1e-3 * project(f, normal(*f.shape, draw=draw)).dense(f)
    assert (G - xi).norm() < (G - other).norm()


def test_the_weight_itself_is_a_tangent_vector(f):
    close(project(f, f.dense()).dense(f), f.dense())


def test_the_coordinates_are_those_of_the_dense_vector(f, draw):
    xi = project(f, normal(*f.shape, draw=draw))
    dense = xi.dense(f)
    close(dense @ f.V, xi.K)
    close(dense.mT @ f.U, xi.L)
    close(f.U.mT @ dense @ f.V, xi.C)


def test_inner_product_and_norm_are_frobenius(f, draw):
    xi, eta = (project(f, normal(*f.shape, draw=draw)) for _ in range(2))
    close(inner(xi, eta), (xi.dense(f) * eta.dense(f)).sum())
    close(squared_norm(xi), xi.dense(f).square().sum())


def test_the_squared_norm_of_the_projected_gradient_needs_three_small_norms(f, draw):
    G = normal(*f.shape, draw=draw)
    K, L, C = G @ f.V, G.mT @ f.U, f.U.mT @ G @ f.V
    close(K.norm() ** 2 + L.norm() ** 2 - C.norm() ** 2, dense_projection(f, G).norm() ** 2)
    close(squared_norm(project(f, G)), dense_projection(f, G).norm() ** 2)


def test_a_squared_norm_is_never_negative_by_rounding():
    C = torch.tensor([[1.0]])
    almost = torch.tensor([[0.70710677]])
    assert squared_norm(Tangent(almost, almost, C * 1.0000001)) == 0.0


def test_a_gradient_in_the_normal_space_projects_to_zero(draw):
    f = factors(7, 5, SPECTRA["generic"](2), draw)
    G = normal(7, 5, draw=draw)
    G = G - dense_projection(f, G)
    close(squared_norm(project(f, G)), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_inner_product_with_a_factored_matrix_is_that_of_dense_ones(rank, draw):
    f, W = factors(7, 5, SPECTRA["generic"](3), draw), factors(7, 5, SPECTRA["generic"](rank), draw)
    xi = project(f, normal(7, 5, draw=draw))
    close(inner_product(f, xi, W), (xi.dense(f) * W.dense()).sum())
