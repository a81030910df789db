"""Reshaping singular values."""

import pytest
import torch

from cases import SPECTRA, close, matrix, normal
from rankwise.numerics.spectrum import spectral_power


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6), (1, 4)])
def test_power_one_changes_nothing_and_power_zero_is_the_polar_factor(shape, draw):
    X = normal(*shape, draw=draw)
    P, sigma, Qh = torch.linalg.svd(X, full_matrices=False)
    close(spectral_power(X, 1.0), X)
    close(spectral_power(X, 0.0), P @ Qh * (X.norm() / sigma.shape[0] ** 0.5))


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5, 1.0])
def test_singular_values_are_raised_and_the_frobenius_norm_kept(power, draw):
    sigma = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
    Y = spectral_power(matrix(7, 5, sigma, draw), power)
    expected = sigma**power
    close(torch.linalg.svdvals(Y)[:3], expected * (sigma.norm() / expected.norm()))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_shape_of_the_spectrum_does_not_depend_on_the_scale(scale, draw):
    X = normal(7, 5, draw=draw)
    close(spectral_power(X * scale, 0.5) / scale, spectral_power(X, 0.5))


def test_noise_is_not_blown_up(draw):
    sigma = torch.tensor([1.0, 1e-9], dtype=torch.float64)
    Y = spectral_power(matrix(7, 5, sigma, draw), 0.0)
    values = torch.linalg.svdvals(Y)
    close(values[:2], torch.tensor([1.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_zero_stays_zero(power):
    assert not spectral_power(torch.zeros(4, 3), power).any()


@pytest.mark.parametrize("spectrum", ["rank-deficient", "graded to 1e-8"])
def test_a_deficient_matrix_keeps_its_norm(spectrum, draw):
    X = matrix(7, 5, SPECTRA[spectrum](5), draw)
    close(spectral_power(X, 0.5).norm(), X.norm())
