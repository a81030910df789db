"""Steps and truncations: what is cut, what is exact, and of which order the rest is."""

import math

import pytest
import torch

from cases import SHAPES_AND_RANKS, SPECTRA, close, dense_projection, factors, matrix, normal
from rankwise.numerics.factors import orthonormality_defect
from rankwise.numerics.retract import Frame, core_of, cut, decompose, displaced, frame_of, truncate
from rankwise.numerics.tangent import Tangent, project
from rankwise.numerics.truncate import rank_for_tolerance


def prescribed(m, n, spectrum, r, draw):
    return factors(m, n, SPECTRA[spectrum](r), draw)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("m, n, r", SHAPES_AND_RANKS)
def test_the_error_of_a_truncation_is_the_discarded_tail(spectrum, m, n, r, draw):
    f, sigma = prescribed(m, n, spectrum, r, draw), SPECTRA[spectrum](r)
    for rank in range(1, r + 1):
        g = truncate(f, rank)
        assert g.rank == rank
        close((f.dense() - g.dense()).norm(), sigma[rank:].norm(), 1e-13)
        assert orthonormality_defect(g.U) < 1e-13 and orthonormality_defect(g.V) < 1e-13


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("m, n, r", SHAPES_AND_RANKS)
def test_zero_tolerance_is_exact_on_a_core_that_is_not_symmetric(spectrum, m, n, r, draw):
    f = prescribed(m, n, spectrum, r, draw)
    sigma = decompose(Frame(f.U, f.V), f.S).sigma
    close(truncate(f, rank_for_tolerance(sigma, rtol=0.0)).dense(), f.dense(), 1e-14)


@pytest.mark.parametrize("rtol", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_a_tolerance_bounds_the_relative_error(rtol, spectrum, draw):
    f = prescribed(40, 30, spectrum, 9, draw)
    rank = rank_for_tolerance(torch.linalg.svdvals(f.S), rtol=rtol)
    error = (f.dense() - truncate(f, rank).dense()).norm()
    assert error <= rtol * f.dense().norm() + 1e-14


def test_a_truncated_core_is_diagonal_and_descending(draw):
    S = truncate(prescribed(7, 5, "generic", 4, draw), 3).S
    close(S, torch.diag(torch.linspace(2.0, 0.5, 4, dtype=torch.float64)[:3]))


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("m, n, r", SHAPES_AND_RANKS)
def test_the_parallel_step_is_the_projected_gradient_step_exactly(spectrum, m, n, r, draw):
    f, G = prescribed(m, n, spectrum, r, draw), normal(m, n, draw=draw)
    step = displaced(f, project(f, G), lambda core: 0.3 * core)
    whole = cut(step, step.sigma.shape[0])
    close(whole.dense(), f.dense() - 0.3 * dense_projection(f, G), 1e-13)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("m, n, r", SHAPES_AND_RANKS)
def test_a_cut_step_is_the_best_approximation_of_that_rank(spectrum, m, n, r, draw):
    f, G = prescribed(m, n, spectrum, r, draw), normal(m, n, draw=draw)
    dense = f.dense() - 0.3 * dense_projection(f, G)
    error = (cut(displaced(f, project(f, G), lambda core: 0.3 * core), r).dense() - dense).norm()
    close(error, torch.linalg.svdvals(dense)[r:].norm(), 1e-12)


@pytest.mark.parametrize("m, n, r", SHAPES_AND_RANKS)
def test_the_core_of_a_direction_is_the_direction_in_its_frame(m, n, r, draw):
    f, G = prescribed(m, n, "generic", r, draw), normal(m, n, draw=draw)
    xi = project(f, G)
    frame = frame_of(f, xi)
    core = core_of(frame.U_hat.mT @ xi.K, frame.V_hat.mT @ xi.L, xi.C)
    close(frame.U_hat @ core @ frame.V_hat.mT, dense_projection(f, G), 1e-13)


@pytest.mark.parametrize("m, n, r", [(m, n, r) for m, n, r in SHAPES_AND_RANKS if r < min(m, n)])
def test_the_retraction_is_first_order(m, n, r, draw):
    f, G = prescribed(m, n, "generic", r, draw), normal(m, n, draw=draw)
    xi = project(f, G / G.norm())

    def error(h: float) -> float:
        retracted = cut(displaced(f, xi, lambda core: h * core), r).dense()
        return float((retracted - (f.dense() - h * xi.dense(f))).norm())

    slope = math.log(error(1e-2) / error(1e-3)) / math.log(10)
    assert slope == pytest.approx(2.0, abs=0.05)


def test_at_full_rank_a_step_is_gradient_descent(draw):
    f, G = prescribed(7, 5, "generic", 5, draw), normal(7, 5, draw=draw)
    close(cut(displaced(f, project(f, G), lambda core: 0.1 * core), 5).dense(), f.dense() - 0.1 * G)


def test_a_step_from_zero_has_the_rank_of_the_projected_gradient(draw):
    f, G = prescribed(40, 30, "zero", 2, draw), normal(40, 30, draw=draw)
    sigma = displaced(f, project(f, G)).sigma
    assert sigma.shape == (4,)
    assert sigma[-1] > 1e-3


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_a_step_is_exact_for_gradients_of_any_size(size, draw):
    f = prescribed(7, 5, "generic", 2, draw)
    f = f._replace(S=f.S * size)
    G = normal(7, 5, draw=draw) * size
    step = displaced(f, project(f, G), lambda core: 0.3 * core)
    expected = f.dense() - 0.3 * dense_projection(f, G)
    close(cut(step, 4).dense() / size, expected / size, 1e-13)


def test_neither_step_nor_truncation_touches_what_it_was_lent(draw):
    f, G = prescribed(7, 5, "generic", 3, draw), normal(7, 5, draw=draw)
    xi = project(f, G)
    before = [t.clone() for t in (*f, *xi)]
    cut(displaced(f, xi, lambda core: 0.3 * core), 2)
    truncate(f, 2)
    assert all(torch.equal(a, b) for a, b in zip((*f, *xi), before, strict=True))


def test_an_inconsistent_direction_is_taken_as_the_matrix_that_it_is(draw):
    f = prescribed(9, 8, "generic", 2, draw)
    xi = Tangent(normal(9, 2, draw=draw), normal(8, 2, draw=draw), normal(2, 2, draw=draw))
    close(cut(displaced(f, xi), 4).dense(), f.dense() - xi.dense(f), 1e-13)


@pytest.mark.parametrize("m, n", [(7, 5), (5, 7)])
def test_frames_are_never_wider_than_the_matrix(m, n, draw):
    f = prescribed(m, n, "generic", 4, draw)
    frame = frame_of(f, project(f, normal(m, n, draw=draw)))
    assert frame.U_hat.shape == (m, min(m, 8)) and frame.V_hat.shape == (n, min(n, 8))


def test_a_prescribed_matrix_is_found_by_truncation_of_a_noisy_one(draw):
    sigma = torch.tensor([2.0, 1.0], dtype=torch.float64)
    W = matrix(7, 5, sigma, draw)
    f = factors(7, 5, torch.ones(5, dtype=torch.float64), draw)
    f = f._replace(S=f.U.mT @ (W + 1e-9 * normal(7, 5, draw=draw)) @ f.V)
    # V is square here, U spans five of seven dimensions: project W on what U can hold.
    held = f.U @ f.U.mT @ W
    close(truncate(f, 2).dense(), held, 1e-8)
