"""Nothing depends on which basis holds a space: `U -> U Q`, `V -> V R`, `S -> Q^T S R`."""

import pytest

from cases import SHAPES_AND_RANKS, SPECTRA, close, factors, normal, orthonormal
from rankwise.numerics.factors import Factors
from rankwise.numerics.retract import cut, displaced, truncate
from rankwise.numerics.tangent import inner, project, squared_norm
from rankwise.numerics.transport import transport


@pytest.fixture(params=SHAPES_AND_RANKS, ids=str)
def pair(request, draw):
    """The same matrix in two bases."""
    m, n, r = request.param
    f = factors(m, n, SPECTRA["generic"](r), draw)
    return f, turned(f, draw)


def turned(f, draw):
    Q, R = (orthonormal(f.rank, f.rank, draw) for _ in range(2))
    return Factors(f.U @ Q, Q.mT @ f.S @ R, f.V @ R)


def test_projection_norm_and_inner_product(pair, draw):
    f, g = pair
    G, H = normal(*f.shape, draw=draw), normal(*f.shape, draw=draw)
    close(f.dense(), g.dense())
    close(project(f, G).dense(f), project(g, G).dense(g))
    close(squared_norm(project(f, G)), squared_norm(project(g, G)))
    close(inner(project(f, G), project(f, H)), inner(project(g, G), project(g, H)))


def test_step_spectrum_and_retraction(pair, draw):
    f, g = pair
    G = normal(*f.shape, draw=draw)
    one, other = (displaced(h, project(h, G), lambda core: 0.2 * core) for h in (f, g))
    close(one.sigma, other.sigma)
    for rank in {1, f.rank}:
        close(cut(one, rank).dense(), cut(other, rank).dense(), 1e-10)
        close(truncate(f, rank).dense(), truncate(g, rank).dense(), 1e-10)


def test_transport(pair, draw):
    f, g = pair
    G = normal(*f.shape, draw=draw)
    xi, same_xi = project(f, G), project(g, G)
    new = factors(*f.shape, SPECTRA["generic"](f.rank), draw)
    also_new = turned(new, draw)
    one = transport(f, new, xi).dense(new)
    other = transport(g, also_new, same_xi).dense(also_new)
    close(one, other)
