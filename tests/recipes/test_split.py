"""Every row has one client, whatever the draw."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.recipes.split import dirichlet_split


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    share=st.floats(0.0, 1.0),
    alpha=st.sampled_from([0.01, 0.1, 1.0, 1e6]),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_row_has_exactly_one_client_and_every_client_a_row(labels, share, alpha, seed):
    y = torch.tensor(labels)
    clients = 1 + int(share * (len(y) - 1))
    parts = dirichlet_split(y, clients, alpha=alpha, seed=seed)
    assert len(parts) == clients
    assert all(len(part) > 0 and torch.equal(part, part.sort().values) for part in parts)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(y)))


def shares(alpha: float, classes: int = 10, clients: int = 8) -> torch.Tensor:
    """(classes, clients), of 1000 rows a class."""
    y = torch.arange(classes).repeat(1000)
    parts = dirichlet_split(y, clients, alpha=alpha, seed=3)
    counts = torch.stack([torch.bincount(y[part], minlength=classes) for part in parts], 1)
    return counts / 1000


def test_alpha_says_how_uneven():
    """The mean of `sum_c p_c^2` over Dirichlet(alpha) is (alpha + 1) / (clients alpha + 1)."""
    for alpha in (0.1, 1.0, 100.0):
        p = shares(alpha, classes=200)
        assert float(p.square().sum(1).mean()) == pytest.approx(
            (alpha + 1) / (8 * alpha + 1), rel=0.07
        )


def test_the_seed_decides_and_nothing_else():
    y = torch.arange(5).repeat(40)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = dirichlet_split(y, 4, alpha=0.3, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    same, other = (dirichlet_split(y, 4, alpha=0.3, seed=s) for s in (7, 8))
    assert all(map(torch.equal, one, same))
    assert not all(map(torch.equal, one, other))


@pytest.mark.parametrize(
    "clients, alpha, message",
    [
        (0, 1.0, "`clients` must be from 1 to 6, the number of samples, got 0"),
        (7, 1.0, "`clients` must be from 1 to 6"),
        (2, 0.0, "`alpha` must be finite and at least 0.01, got 0.0"),
        (2, float("nan"), "`alpha` must be finite"),
        (2, float("inf"), "`alpha` must be finite"),
    ],
)
def test_what_cannot_be_dealt_out_is_told(clients, alpha, message):
    with pytest.raises(ValueError, match=message):
        dirichlet_split(torch.zeros(6, dtype=torch.long), clients, alpha=alpha, seed=0)
