"""Carrying momentum from one tangent space to the next.

Momentum is a tangent vector, i.e. a matrix; moving it means projecting that matrix onto the new
tangent space. Leaving its coordinates unchanged while the bases turn would keep another matrix.
"""

from rankwise.numerics.factors import Factors
from rankwise.numerics.tangent import Tangent


def transport(old: Factors, new: Factors, xi: Tangent) -> Tangent:
    """`P(W_new) xi` for `xi` tangent at `old`; the ranks may differ. O((m + n) r^2), nothing dense.

    With `xi = K V^T + U R^T`, `R = L - V C^T` (so that `V^T R = 0`), the new coordinates are
    `xi V' = K (V^T V') + U (R^T V')` and `xi^T U' = V (K^T U') + R (U^T U')`.
    """
    R = xi.L - old.V @ xi.C.mT
    K = xi.K @ (old.V.mT @ new.V) + old.U @ (R.mT @ new.V)
    L = old.V @ (xi.K.mT @ new.U) + R @ (old.U.mT @ new.U)
    return Tangent(K, L, new.U.mT @ K)
