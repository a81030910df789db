"""Cutting low-rank layers after training."""

import math

import pytest
import torch
from torch import nn

from cases import SHAPES_AND_RANKS, SPECTRA, factors
from networks import dense_of, thin_layers, train
from rankwise.compress import truncate_
from rankwise.nn import LowRankLinear, TuckerConv2d
from rankwise.nn.low_rank import low_rank_layers
from rankwise.numerics.factors import orthonormality_defect
from rankwise.numerics.rounding import rounded
from rankwise.optim.adam import Adam
from rankwise.optim.optimizer import Optimizer
from rankwise.optim.update_rule import SGD, HeavyBall
from rankwise.surgery.merge import merge_
from tucker_kernels import tucker


def layer_with(sigma: list[float], draw: torch.Generator) -> nn.Sequential:
    sigma = torch.tensor(sigma, dtype=torch.float64)
    return nn.Sequential(LowRankLinear(factors(9, 7, sigma, draw)))


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES_AND_RANKS)
def test_the_error_told_is_the_error_made_and_within_the_tolerance(draw, shape, spectrum):
    m, n, r = shape
    f = factors(m, n, SPECTRA[spectrum](r), draw)
    for rtol, max_rank in ((0.3, None), (1e-7, None), (0.0, 2), (0.5, 1)):
        new, error = rounded(f, rtol=rtol, max_rank=max_rank)
        made = torch.linalg.matrix_norm(f.dense() - new.dense())
        assert abs(float(made) - error) < 1e-13
        assert max_rank is not None or made <= rtol * f.norm() + 1e-14
        assert 1 <= new.rank <= (max_rank or r)
        assert orthonormality_defect(new.U) < 1e-13 > orthonormality_defect(new.V)


def test_ranks_by_hand(draw):
    model = layer_with([4.0, 2.0, 1.0, 0.5, 0.25], draw)
    norm = math.hypot(4, 2, 1, 0.5, 0.25)
    report = truncate_(model, rtol=1.01 * math.hypot(0.5, 0.25) / norm)
    assert (report.layers[0].before, report.layers[0].after) == ((5,), (3,))
    assert math.isclose(report.error, math.hypot(0.5, 0.25) / norm, rel_tol=1e-12)
    assert report.parameters == (5 * (9 + 7 + 5), 3 * (9 + 7 + 3))
    assert truncate_(model, max_rank=1).layers[0].after == (1,)


def test_nothing_to_cut_changes_no_bit(draw):
    model = layer_with([2.0, 1.0], draw)
    before = [p.clone() for p in model.parameters()]
    report = truncate_(model, rtol=0.0, max_rank=2)
    assert report.error == 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_layer_of_zeros_keeps_one_direction(draw):
    report = truncate_(layer_with([0.0, 0.0, 0.0], draw), rtol=0.1)
    assert report.layers[0].after == (1,) and report.error == 0.0


@pytest.mark.parametrize("limits", [{"rtol": 0.2}, {"max_rank": 2}, {"rtol": 0.4, "max_rank": 3}])
def test_a_tucker_kernel_is_cut_in_both_modes(draw, limits):
    f = tucker(8, 6, (3, 3), (5, 4), draw)
    layer = TuckerConv2d(f)
    report = truncate_(nn.Sequential(layer), **limits)
    made = (layer.kernel() - f.dense()).norm()
    assert abs(float(made) - report.layers[0].error) < 1e-12
    assert "rtol" not in limits or "max_rank" in limits or made <= limits["rtol"] * f.norm()
    assert max(layer.ranks) <= limits.get("max_rank", 5)


@pytest.mark.parametrize("rule", [Adam(), HeavyBall()])
def test_the_optimizer_of_before_says_that_its_momentum_does_not_fit(rule):
    model = thin_layers()
    optimizer = Optimizer(model, lr=1e-2, rule=rule)
    train(model, optimizer, 0, 3)
    truncate_(model, max_rank=1)
    with pytest.raises(ValueError, match="has rank 1, the momentum of its optimizer rank 2.*new"):
        train(model, optimizer, 3, 4)
    losses = train(model, Optimizer(model, lr=1e-2, rule=rule), 3, 30)
    assert losses[-1] < losses[0]


def test_a_rule_without_momentum_goes_on_after_a_cut():
    model = thin_layers()
    optimizer = Optimizer(model, lr=1e-2, rule=SGD())
    train(model, optimizer, 0, 3)
    truncate_(model, max_rank=1)
    before = dense_of(model)
    train(model, optimizer, 3, 4)
    assert not torch.equal(before[0], dense_of(model)[0])


def test_the_report_is_a_table(draw):
    model = nn.Sequential(
        *(LowRankLinear(factors(9, 7, SPECTRA["generic"](3), draw)) for _ in "ab")
    )
    printed = str(truncate_(model, max_rank=1))
    for words in ("*", "rank before", "relative error", "parameters in factors: 114 before, 34"):
        assert words in printed


def test_what_cannot_be_cut_is_told(draw):
    model = thin_layers()
    for limits, error in (
        ({}, "give `rtol`"),
        ({"rtol": 1.5}, r"`rtol` must be in \[0, 1\), got 1.5"),
        ({"max_rank": 0}, "`max_rank` must be at least 1"),
    ):
        with pytest.raises(ValueError, match=error):
            truncate_(model, **limits)
    with pytest.raises(ValueError, match="no low-rank layer to cut"):
        truncate_(nn.Linear(3, 3), rtol=0.1)
    merge_(model)
    with pytest.raises(ValueError, match="layer '0' is merged"):
        truncate_(model, rtol=0.1)
    assert len(low_rank_layers(model)) == 2
