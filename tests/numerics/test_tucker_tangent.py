"""Tangent vectors of Tucker kernels and steps along them, against dense linear algebra."""

import pytest
import torch

from cases import close, normal
from rankwise.numerics import tangent as matrices
from rankwise.numerics.factors import Factors, orthonormality_defect
from rankwise.numerics.retract import cut, displaced
from rankwise.numerics.spectrum import spectral_power
from rankwise.numerics.tucker import Tucker, times_first, times_second
from rankwise.numerics.tucker_tangent import project_kernel, tangent_at
from tucker_kernels import CORES, KERNELS, kernel_of, modes, tangent_basis, tucker

each_kernel = pytest.mark.parametrize("case", KERNELS, ids=str)
each_core = pytest.mark.parametrize("core", CORES)
REGULAR = ["generic", "equal singular values"]


def dense(f: Tucker, draw) -> torch.Tensor:
    return normal(*f.shape, *f.places, draw=draw)


def end_of(spectrum) -> torch.Tensor:
    return kernel_of(spectrum.core, spectrum.U_hat, spectrum.V_hat)


@pytest.mark.parametrize("core", REGULAR)
@each_kernel
def test_projection_is_that_onto_all_derivatives_by_the_factors(case, core, draw):
    f = tucker(*case, draw, core)
    G, basis = dense(f, draw), tangent_basis(f)
    expected = (basis @ (basis.mT @ G.flatten())).view_as(G)
    close(project_kernel(f, G).dense(f), expected, 1e-11)


@each_core
@each_kernel
def test_projection_is_orthogonal_whatever_the_core(case, core, draw):
    """Also where derivatives by the factors span less, for a core of lower rank."""
    f = tucker(*case, draw, core)
    G, H = dense(f, draw), dense(f, draw)
    xi, eta = project_kernel(f, G), project_kernel(f, H)
    for once, twice in zip(xi, project_kernel(f, xi.dense(f)), strict=True):
        close(once, twice)
    close((xi.dense(f) * H).sum(), (G * eta.dense(f)).sum())
    close(((G - xi.dense(f)) * eta.dense(f)).sum(), torch.zeros((), dtype=torch.float64), 1e-11)
    close(xi.squared_norm(), xi.dense(f).square().sum())


@each_core
@each_kernel
def test_all_derivatives_by_the_factors_are_tangent(case, core, draw):
    f = tucker(*case, draw, core)
    dU, dC, dV = (normal(*t.shape, draw=draw) for t in f)
    moved = kernel_of(f.core, dU, f.V) + kernel_of(dC, f.U, f.V) + kernel_of(f.core, f.U, dV)
    close(project_kernel(f, moved).dense(f), moved)


@each_kernel
def test_the_coordinates_are_their_dense_definitions(case, draw):
    f = tucker(*case, draw)
    G = dense(f, draw)
    K, L, C, A, B = project_kernel(f, G)
    V1 = modes(kernel_of(A, torch.eye(A.shape[0], dtype=A.dtype), f.V))[0].mT
    U2 = modes(kernel_of(B, f.U, torch.eye(B.shape[1], dtype=B.dtype)))[1].mT
    assert max(orthonormality_defect(V1), orthonormality_defect(U2)) < 1e-13
    first, second = modes(G)
    close(K, first @ V1)
    close(L, second @ U2)
    close(C, kernel_of(G, f.U.mT, f.V.mT))
    W_first, W_second = modes(f.dense())
    close(W_first @ V1 @ V1.mT, W_first)
    close(W_second @ U2 @ U2.mT, W_second)


@each_core
@each_kernel
def test_a_step_before_it_is_cut_is_exact(case, core, draw):
    f = tucker(*case, draw, core)
    xi = project_kernel(f, dense(f, draw))
    close(end_of(xi.displaced(f, lambda core: 0.3 * core)), f.dense() - 0.3 * xi.dense(f), 1e-11)
    close(end_of(xi.displaced(f.scaled(0.0))), -xi.dense(f), 1e-11)


@each_core
@each_kernel
def test_a_cut_keeps_within_the_tails_of_both_modes(case, core, draw):
    f = tucker(*case, draw, core)
    end = project_kernel(f, dense(f, draw)).displaced(f)
    for matrix, sigma in zip(modes(end_of(end)), end.spectra(), strict=True):
        close(torch.linalg.svdvals(matrix)[: len(sigma)], sigma)
    for ranks in (f.ranks, (1, 1), tuple(len(s) for s in end.spectra())):
        new = end.cut_to(ranks)
        tails = [s[r:].norm() for s, r in zip(end.spectra(), new.ranks, strict=True)]
        assert (new.dense() - end_of(end)).norm() <= torch.stack(tails).norm() + 1e-11
        assert max(orthonormality_defect(new.U), orthonormality_defect(new.V)) < 1e-13
        assert new.checked() is new


def test_a_cut_lowers_a_rank_that_the_other_mode_cannot_fill(draw):
    f = tucker(9, 4, (2, 2), (8, 2), draw)
    end = project_kernel(f, dense(f, draw)).displaced(f)
    assert end.cut_to((8, 1)).ranks == (4, 1)
    assert end.cut_to((1, 4)).ranks == (1, 4)
    turned = tucker(4, 9, (2, 2), (2, 8), draw)
    assert project_kernel(turned, dense(turned, draw)).displaced(turned).cut_to((1, 8)).ranks == (
        1,
        4,
    )
    line = tucker(6, 5, (1, 1), (3, 3), draw)
    end = project_kernel(line, dense(line, draw)).displaced(line)
    assert end.cut_to((2, 4)).ranks == (2, 2)


@each_kernel
def test_the_retraction_is_first_order(case, draw):
    f = tucker(*case, draw)
    xi = project_kernel(f, dense(f, draw))
    size = xi.squared_norm().sqrt()
    errors = []
    for h in (1e-2, 1e-3, 1e-4):
        new = xi.displaced(f, lambda core, h=h: h / size * core).cut_to(f.ranks)
        errors.append(float((new.dense() - f.dense() + h / size * xi.dense(f)).norm()))
    full = f.ranks == f.shape
    assert max(errors) < 1e-12 if full else 80 < errors[0] / errors[1] < 120
    assert full or 80 < errors[1] / errors[2] < 120


@pytest.mark.parametrize("ranks", [(3, 2), (2, 3), (1, 1), (7, 5)])
def test_transport_is_the_dense_projection_onto_the_new_tangent_space(ranks, draw):
    old, new = tucker(7, 5, (3, 2), (3, 2), draw), tucker(7, 5, (3, 2), ranks, draw)
    xi = project_kernel(old, dense(old, draw))
    expected = project_kernel(new, xi.dense(old))
    for got, wanted in zip(xi.transport(old, new), expected, strict=True):
        close(got, wanted)
    close(xi.inner_product(old, new), (xi.dense(old) * new.dense()).sum(), 1e-11)
    close(xi.along(old), (xi.dense(old) * old.dense()).sum())


@each_kernel
def test_scaling_both_sides_is_the_projection_of_the_scaled_kernel(case, draw):
    f = tucker(*case, draw)
    xi = project_kernel(f, dense(f, draw))
    row, column = (normal(size, draw=draw).abs() for size in f.shape)
    scaled = torch.einsum("o,oiyx,i->oiyx", row, xi.dense(f), column)
    close(xi.scaled_sides(f, row, column).dense(f), project_kernel(f, scaled).dense(f))


def test_at_one_place_everything_is_that_of_a_matrix(draw):
    """Tangent vector, core in the larger bases, spectrum and cut; the bases of rows differ."""
    f = tucker(7, 6, (1, 1), (3, 3), draw)
    matrix = Factors(f.U, f.core[:, :, 0, 0], f.V)
    G = dense(f, draw)
    xi, eta = project_kernel(f, G), matrices.project(matrix, G[:, :, 0, 0])
    close(xi.dense(f)[:, :, 0, 0], eta.dense(matrix))
    close(xi.C[:, :, 0, 0], eta.C)
    for got, wanted in ((xi.K, eta.K), (xi.L, eta.L)):
        close(got @ got.mT, wanted @ wanted.mT, 1e-11)
    end, expected = xi.displaced(f), displaced(matrix, eta)
    for sigma in end.spectra():
        close(sigma, expected.sigma)
    close(end.cut_to((3, 3)).dense()[:, :, 0, 0], cut(expected, 3).dense())


def test_coordinates_make_the_tangent_vector_again(draw):
    f = tucker(7, 5, (3, 2), (3, 2), draw)
    xi = project_kernel(f, dense(f, draw))
    close(tangent_at(f, xi.K, xi.L, xi.C).dense(f), xi.dense(f))
    close(xi.like(2 * xi.K, 2 * xi.L, 2 * xi.C).dense(f), 2 * xi.dense(f))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_a_power_of_the_spectrum_of_a_tensor(power, draw):
    X, wide = normal(5, 4, draw=draw), normal(5, 4, 3, 2, draw=draw)
    close(spectral_power(X[:, :, None, None], power)[:, :, 0, 0], spectral_power(X, power), 1e-10)
    shaped = spectral_power(wide, power)
    close(shaped.norm(), wide.norm())
    close(spectral_power(1e3 * wide, power), 1e3 * shaped, 1e-9)
    P, Q = (torch.linalg.qr(normal(size, size, draw=draw))[0] for size in (5, 4))
    turned = times_second(times_first(wide, P), Q)
    close(spectral_power(turned, power), times_second(times_first(shaped, P), Q), 1e-10)
    if power == 1.0:
        close(shaped, wide)
    else:
        steep = wide * torch.tensor([10.0, 3.0, 1.0, 0.3, 0.1])[:, None, None, None]
        flatter = spectral_power(steep, power)
        before, after = (torch.linalg.svdvals(t.flatten(1)) for t in (steep, flatter))
        assert after[0] / after[-1] < (before[0] / before[-1]) ** 0.8


def test_a_power_leaves_noise_and_zero_alone(draw):
    zero = torch.zeros(3, 2, 2, 2, dtype=torch.float64)
    close(spectral_power(zero, 0.5), zero)
    X = normal(4, 3, 2, 2, draw=draw)
    X[-1] = 0.0
    noisy = X + 1e-7 * normal(*X.shape, draw=draw)
    close(spectral_power(noisy, 0.0), spectral_power(X, 0.0), 1e-5)
