"""The SVD and the other routes to it."""

import pytest
import torch
from torch.testing import assert_close

from cases import normal
from rankwise.numerics.svd import ROUTES, by_eigenvalues, detours, svd

SHAPES = [(5, 5), (7, 4), (4, 7), (1, 1), (6, 1), (1, 6), (3, 8, 5)]


def check(X, parts, atol):
    P, sigma, Qh = parts
    assert_close(P * sigma[..., None, :] @ Qh, X, atol=atol * float(X.norm()), rtol=0)
    eye = torch.eye(sigma.shape[-1], dtype=X.dtype).expand(*X.shape[:-2], -1, -1)
    assert_close(P.mT @ P, eye, atol=1e-12, rtol=0)
    assert_close(Qh @ Qh.mT, eye, atol=1e-12, rtol=0)
    assert bool((sigma >= 0).all()) and bool((sigma.diff() <= 0).all())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("route", [svd, by_eigenvalues], ids=["lapack", "eigenvalues"])
def test_every_route_gives_orthonormal_factors_of_the_matrix(route, shape, draw):
    X = normal(*shape, draw=draw)
    check(X, route(X), 1e-7)
    assert_close(route(X)[1], torch.linalg.svdvals(X), atol=1e-7, rtol=0)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_by_eigenvalues_takes_deficient_matrices_and_equal_singular_values(rank, draw):
    X = normal(8, rank, draw=draw) @ normal(rank, 6, draw=draw)
    check(X, by_eigenvalues(X), 1e-7)
    assert float(by_eigenvalues(X)[1][rank:].sum()) <= 1e-7 * float(X.norm())
    Q = torch.linalg.qr(normal(8, 6, draw=draw))[0]
    check(Q, by_eigenvalues(Q), 1e-7)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_by_eigenvalues_squares_nothing_that_overflows(size, draw):
    X = size * normal(6, 4, draw=draw)
    P, sigma, Qh = by_eigenvalues(X)
    assert_close(P * (sigma / size) @ Qh, X / size, atol=1e-7, rtol=0)


@pytest.mark.parametrize("failing", [1, 2])
def test_where_lapack_fails_another_route_is_taken_and_counted(failing, monkeypatch, draw):
    X, real, left = normal(6, 4, draw=draw).float(), torch.linalg.svd, [None] * failing

    def fails_at_first(*arguments, **named):
        if left:
            left.pop()
            raise torch.linalg.LinAlgError("the algorithm failed to converge")
        return real(*arguments, **named)

    expected, name = svd(X), list(ROUTES)[failing]
    before = detours[name]
    monkeypatch.setattr(torch.linalg, "svd", fails_at_first)
    P, sigma, Qh = svd(X)
    assert detours[name] == before + 1 and P.dtype == torch.float32
    assert_close(sigma, expected[1])
    assert_close(P * sigma @ Qh, X)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_has_none(value):
    X = torch.eye(4)
    X[1, 2] = value
    with pytest.raises(FloatingPointError, match=r"matrix \(4, 4\) has no SVD: it has NaN"):
        svd(X)


def test_where_no_route_leads_anywhere_it_is_said(monkeypatch):
    def fails(*_, **__):
        raise torch.linalg.LinAlgError("no")

    monkeypatch.setattr(torch.linalg, "svd", fails)
    monkeypatch.setattr(torch.linalg, "eigh", fails)
    with pytest.raises(FloatingPointError, match="do not converge"):
        svd(torch.eye(3))
