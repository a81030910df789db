"""Carrying momentum from one tangent space to the next.

Momentum is a tangent vector, i.e. a matrix; moving it means projecting that matrix onto the new
tangent space. Leaving its coordinates unchanged while the bases turn would keep another matrix.
"""

from rankwise.numerics.factors import Factors
from rankwise.numerics.tangent import Tangent


def transport(old: Factors, new: Factors, xi: Tangent) -> Tangent:
    """`P(W_new) xi` for `xi` tangent at `old`, in O((m + n) r^2); the ranks may differ."""
    return xi.transport(old, new)
