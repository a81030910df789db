"""What counts as factors, and what is said of things that do not."""

import pytest
import torch

from cases import SHAPES_AND_RANKS, close, factors, matrix, orthonormal
from rankwise.numerics.factors import Factors, check_factors, orthonormality_defect

ONES = torch.ones(3, dtype=torch.float64)


@pytest.mark.parametrize("m, n, r", SHAPES_AND_RANKS)
def test_the_product_has_the_shape_of_a_weight_and_the_spectrum_of_the_core(m, n, r, draw):
    sigma = torch.linspace(2, 1, r, dtype=torch.float64)
    f = factors(m, n, sigma, draw)
    assert (f.shape, f.rank) == ((m, n), r)
    assert f.dense().shape == (m, n)
    close(torch.linalg.svdvals(f.dense())[:r], sigma)
    assert check_factors(f) is f


def test_the_defect_is_the_largest_entry_of_the_gram_matrix_less_the_identity():
    Q = torch.tensor([[1.0, 0.0], [0.0, 1.1], [0.0, 0.0]], dtype=torch.float64)
    close(orthonormality_defect(Q), torch.tensor(0.21, dtype=torch.float64))
    assert orthonormality_defect(Q[:, :0]) == 0


@pytest.mark.parametrize("letter", "USV")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_factors_are_refused(letter, bad, draw):
    f = factors(7, 5, ONES, draw)
    spoilt = getattr(f, letter).clone()
    spoilt[0, 0] = bad
    with pytest.raises(ValueError, match="must be finite"):
        check_factors(f._replace(**{letter: spoilt}))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"U": torch.ones(7, 2)}, r"U \(7, 2\), S \(3, 3\), V \(5, 3\)"),
        ({"S": torch.ones(3, 2)}, r"S \(3, 2\)"),
        ({"V": torch.ones(5, 4)}, r"V \(5, 4\)"),
        ({"S": torch.ones(3)}, r"floating-point matrices, got .* S \(3,\)"),
        ({"V": torch.ones(5, 3, dtype=torch.int64)}, r"V \(5, 3\) torch.int64"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message, draw):
    with pytest.raises(ValueError, match=message):
        check_factors(factors(7, 5, ONES, draw)._replace(**change))


def test_a_rank_above_the_dimensions_is_refused():
    eye = torch.eye(4)
    with pytest.raises(ValueError, match=r"rank 4 exceeds min\(m, n\) = 3"):
        check_factors(Factors(eye, eye, torch.ones(3, 4)))


def test_the_cases_have_the_spectra_that_they_promise(draw):
    sigma = torch.tensor([3.0, 1.0, 1e-8], dtype=torch.float64)
    close(torch.linalg.svdvals(matrix(7, 5, sigma, draw))[:3], sigma, 1e-14)
    f = factors(7, 5, sigma, draw)
    assert not torch.allclose(f.S, f.S.mT)
    assert orthonormality_defect(orthonormal(7, 5, draw)) < 1e-14
