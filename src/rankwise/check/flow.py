"""A matrix differential equation whose solution is known and stays on the manifold."""

import torch
from torch import Tensor


class RotatingFlow:
    """`W' = A W + W B^T + W` with skew-symmetric `A` (m, m) and `B` (n, n) of Frobenius norm 4.

    Its solution is `W(t) = exp(t) exp(t A) W(0) exp(t B)^T`: the singular values are those of the
    start times `exp(t)`, however small, and the rank is that of the start. So all of an error at
    the end is the integrator's. In float64.

    Args:
        m, n: size of `W`.
        sigma: singular values of `W(0)`, (r,).
        outside: size of a constant field of full rank that is added to the right-hand side. It
            leads away from the manifold, as noise and targets of higher rank do; the solution is
            then known up to about that size.
        generator: of the random bases and of `A`, `B`.
    """

    def __init__(
        self,
        m: int,
        n: int,
        sigma: Tensor,
        *,
        outside: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        def normal(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, dtype=torch.float64, generator=generator)

        def skew(k: int) -> Tensor:
            X = normal(k, k)
            X = X - X.mT
            return X * (4.0 / X.norm().clamp_min(1e-30))

        r = sigma.shape[0]
        U, V = (torch.linalg.qr(normal(k, r))[0] for k in (m, n))
        self.A, self.B = skew(m), skew(n)
        self.field = normal(m, n)
        self.field *= outside / self.field.norm()
        self.start = U @ torch.diag(sigma.double()) @ V.mT

    def at(self, t: float) -> Tensor:
        """The solution `W(t)` without the field outside, (m, n)."""
        left, right = torch.linalg.matrix_exp(t * self.A), torch.linalg.matrix_exp(t * self.B)
        return left @ self.start @ right.mT * torch.tensor(t, dtype=torch.float64).exp()

    def slope(self, W: Tensor) -> Tensor:
        """The right-hand side at `W`."""
        return self.A @ W + W @ self.B.mT + W + self.field
