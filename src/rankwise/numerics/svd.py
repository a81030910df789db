"""The thin SVD, by other routes where LAPACK's does not converge.

LAPACK's divide and conquer fails on some finite matrices, seldom, and a training of days should not
end there. What is not finite has no SVD, and is said to be so.
"""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from rankwise.numerics.orth import qr

Parts = tuple[Tensor, Tensor, Tensor]


class NoSVD(FloatingPointError):
    """Of a matrix that is not finite, or of which no algorithm converges."""


detours: Counter[str] = Counter()
"""How often in this process which other route was taken: "float64", "eigenvalues"."""


def svd(X: Tensor) -> Parts:
    """`P diag(sigma) Qh = X` (..., m, n) with min(m, n) singular values, descending.

    Raises:
        NoSVD: for an `X` that is not finite, and where no route leads anywhere.
    """
    # It waits for the device in any case; of infinite entries LAPACK at times says nothing.
    for name, route in ROUTES.items():
        try:
            parts = route(X)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue
        if not bool(parts[1].isfinite().all()):
            break
        if name != "lapack":
            detours[name] += 1
        return parts
    finite = bool(X.isfinite().all())
    why = "LAPACK's algorithms do not converge" if finite else "it has NaN or infinite entries"
    raise NoSVD(f"a matrix {tuple(X.shape)} has no SVD: {why}")


def _lapack(X: Tensor) -> Parts:
    P, sigma, Qh = torch.linalg.svd(X, full_matrices=False)
    return P, sigma, Qh


def by_eigenvalues(X: Tensor) -> Parts:
    """By `X^T X = Q diag(sigma^2) Q^T` and the QR of `X Q = P R`, whose `R` is diagonal.

    `P` and `Q` are orthonormal to rounding; the product is exact to the root of the precision of
    `X`, 1e-8 of the largest singular value in float64, which is why this is the last resort.
    """
    if X.shape[-2] < X.shape[-1]:
        Q, sigma, Ph = by_eigenvalues(X.mT)
        return Ph.mT, sigma, Q.mT
    largest = X.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(X.dtype).tiny)
    X = X / largest
    Q = torch.linalg.eigh(X.mT @ X)[1].flip(-1)
    P, R = qr(X @ Q)
    sigma, order = R.diagonal(dim1=-2, dim2=-1).sort(descending=True)
    sigma = sigma * largest[..., 0]
    return (
        P.take_along_dim(order[..., None, :], -1),
        sigma,
        Q.take_along_dim(order[..., None, :], -1).mT,
    )


def _in_float64(X: Tensor, route: Callable[[Tensor], Parts]) -> Parts:
    P, sigma, Qh = (t.to(X.dtype) for t in route(X.double()))
    return P, sigma, Qh


ROUTES: dict[str, Callable[[Tensor], Parts]] = {
    "lapack": _lapack,
    "float64": lambda X: _in_float64(X, _lapack),
    "eigenvalues": lambda X: _in_float64(X, by_eigenvalues),
}
