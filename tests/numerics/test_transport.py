"""Momentum moved from one tangent space to the next is the projection of the same matrix."""

import pytest
import torch

from cases import SHAPES_AND_RANKS, SPECTRA, close, dense_projection, factors, normal, orthonormal
from rankwise.numerics.factors import Factors
from rankwise.numerics.orth import augment
from rankwise.numerics.retract import cut, displaced, truncate
from rankwise.numerics.tangent import project
from rankwise.numerics.transport import transport


def random(m, n, r, draw, spectrum="generic"):
    return factors(m, n, SPECTRA[spectrum](r), draw)


@pytest.mark.parametrize("m, n, r", SHAPES_AND_RANKS)
@pytest.mark.parametrize("change", [-1, 0, 2])
def test_transport_is_the_dense_projection_onto_the_new_tangent_space(m, n, r, change, draw):
    new_rank = min(max(r + change, 1), m, n)
    old, new = random(m, n, r, draw), random(m, n, new_rank, draw)
    xi = project(old, normal(m, n, draw=draw))
    moved = transport(old, new, xi)
    dense = xi.dense(old)
    close(moved.dense(new), dense_projection(new, dense))
    close(moved.K, dense @ new.V)
    close(moved.L, dense.mT @ new.U)
    close(moved.C, new.U.mT @ dense @ new.V)


@pytest.mark.parametrize("m, n, r", SHAPES_AND_RANKS)
def test_where_nothing_moves_transport_is_the_identity(m, n, r, draw):
    f = random(m, n, r, draw)
    xi = project(f, normal(m, n, draw=draw))
    for before, after in zip(xi, transport(f, f, xi), strict=True):
        close(after, before)


@pytest.mark.parametrize("spectrum", ["generic", "repeated"])
@pytest.mark.parametrize("m, n, r", SHAPES_AND_RANKS)
def test_augmenting_and_truncating_with_zero_tolerance_leaves_the_momentum(spectrum, m, n, r, draw):
    f = random(m, n, r, draw, spectrum)
    xi, ahead = (project(f, normal(m, n, draw=draw)) for _ in range(2))
    same = cut(displaced(f, ahead, lambda core: 0.0 * core), r)
    close(same.dense(), f.dense())
    close(transport(f, same, xi).dense(same), xi.dense(f), 1e-11)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("m, n, r", SHAPES_AND_RANKS)
def test_a_larger_space_that_contains_the_old_one_keeps_the_momentum_exactly(
    spectrum, m, n, r, draw
):
    f = random(m, n, r, draw, spectrum)
    xi = project(f, normal(m, n, draw=draw))
    k = min(2 * r, m, n)
    U, V = augment(f.U, xi.K)[:, :k], augment(f.V, xi.L)[:, :k]
    grown = Factors(U, torch.nn.functional.pad(f.S, (0, k - r, 0, k - r)), V)
    close(transport(f, grown, xi).dense(grown), xi.dense(f))


def test_back_and_forth_through_a_larger_space_is_the_identity(draw):
    f = random(7, 5, 2, draw)
    xi = project(f, normal(7, 5, draw=draw))
    new = normal(7, 1, draw=draw), normal(5, 1, draw=draw)
    S = torch.nn.functional.pad(f.S, (0, 1, 0, 1))
    grown = Factors(augment(f.U, new[0]), S, augment(f.V, new[1]))
    back = transport(grown, f, transport(f, grown, xi))
    close(back.dense(f), xi.dense(f))


def test_a_momentum_never_grows_on_the_way(draw):
    f = random(40, 30, 3, draw)
    xi = project(f, normal(40, 30, draw=draw))
    moved = cut(displaced(f, project(f, normal(40, 30, draw=draw)), lambda core: 0.1 * core), 3)
    assert transport(f, moved, xi).dense(moved).norm() < xi.dense(f).norm()


def test_coordinates_left_as_they_are_would_be_another_matrix(draw):
    f = random(7, 5, 3, draw)
    xi = project(f, normal(7, 5, draw=draw))
    Q = orthonormal(3, 3, draw)
    turned = Factors(f.U @ Q, Q.mT @ f.S, f.V)
    assert (xi.dense(turned) - xi.dense(f)).norm() > 0.1 * xi.dense(f).norm()
    close(transport(f, turned, xi).dense(turned), xi.dense(f))


def test_a_cut_direction_takes_its_momentum_with_it(draw):
    f = random(7, 5, 3, draw)
    xi = project(f, normal(7, 5, draw=draw))
    g = truncate(f, 2)
    assert transport(f, g, xi).K.shape == (7, 2)
    close(transport(f, g, xi).dense(g), dense_projection(g, xi.dense(f)))
