"""What one step of each integrator is, before it is cut, against dense formulas."""

import pytest
import torch

from cases import SHAPES_AND_RANKS, SPECTRA, close, dense_projection, factors, normal
from flows import ALL, basis, dense, one_step, rotated
from rankwise.integrators.abc_psi import AugmentedPSI
from rankwise.integrators.augmented_bug import AugmentedBUG
from rankwise.integrators.integrator import step
from rankwise.integrators.parallel_bug import ParallelBUG
from rankwise.integrators.projector_splitting import ProjectorSplitting
from rankwise.numerics.factors import Factors, orthonormality_defect
from rankwise.numerics.retract import cut
from rankwise.numerics.tangent import Tangent, project

each = pytest.mark.parametrize("integrator", ALL, ids=lambda i: type(i).__name__)


def expected(integrator, f: Factors, G: torch.Tensor, h: float) -> torch.Tensor:
    """The closed form of one step with the gradient `G` everywhere."""
    W, left, right = f.dense(), basis(f.U, G @ f.V), basis(f.V, G.mT @ f.U)
    match integrator:
        case ParallelBUG():
            return W - h * dense_projection(f, G)
        case AugmentedBUG():
            return W - h * left @ G @ right
        case AugmentedPSI():
            return W - h * left @ G
    raise AssertionError(integrator)


@pytest.mark.parametrize(
    "integrator", [ParallelBUG(), AugmentedBUG(), AugmentedPSI()], ids=lambda i: type(i).__name__
)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("m, n, r", SHAPES_AND_RANKS)
def test_the_closed_forms(integrator, m, n, r, spectrum, draw):
    f, G = factors(m, n, SPECTRA[spectrum](r), draw), normal(m, n, draw=draw)
    close(dense(one_step(integrator, f, lambda W: G, 0.3)), expected(integrator, f, G, 0.3), 1e-11)


@each
@pytest.mark.parametrize("m, n, r", SHAPES_AND_RANKS)
def test_without_displacement_nothing_moves(integrator, m, n, r, draw):
    f = factors(m, n, SPECTRA["generic"](r), draw)
    new = cut(one_step(integrator, f, torch.zeros_like, 0.3), r)
    close(new.dense(), f.dense())
    assert orthonormality_defect(new.U) < 1e-12
    assert orthonormality_defect(new.V) < 1e-12


@each
@pytest.mark.parametrize("size", [5, 6])
def test_at_full_rank_a_step_is_gradient_descent(integrator, size, draw):
    f, G = factors(size, size, SPECTRA["generic"](size), draw), normal(size, size, draw=draw)
    close(dense(one_step(integrator, f, lambda W: G, 0.3)), f.dense() - 0.3 * G, 1e-11)


@each
def test_a_step_does_not_depend_on_the_bases(integrator, draw):
    f, target = factors(7, 5, SPECTRA["generic"](3), draw), normal(7, 5, draw=draw)
    steps = [
        dense(one_step(integrator, g, lambda W: W - target, 0.3)) for g in (f, rotated(f, draw))
    ]
    close(*steps)


@each
def test_a_point_of_a_one_backward_integrator_is_always_the_same_matrix(integrator, draw):
    f, target = factors(7, 5, SPECTRA["generic"](2), draw), normal(7, 5, draw=draw)
    points = []

    def displacement(point: Factors) -> Tangent:
        points.append(point.dense())
        return project(point, 0.3 * (point.dense() - target))

    step(integrator, f, displacement)
    moved = max(float((point - f.dense()).norm()) for point in points)
    assert (moved < 1e-12) == integrator.same_matrix


@each
def test_from_a_zero_core_the_first_step_already_learns(integrator, draw):
    f, G = factors(7, 5, torch.zeros(2, dtype=torch.float64), draw), normal(7, 5, draw=draw)
    new = dense(one_step(integrator, f, lambda W: G, 0.3))
    assert (new * G).sum() < 0
    assert torch.linalg.matrix_rank(new) >= (1 if isinstance(integrator, ProjectorSplitting) else 2)
