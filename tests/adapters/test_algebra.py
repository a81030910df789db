"""Sums of adapters are sums of the matrices that they add."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import rankwise as rw
from adapter_models import LAYERS, adapter, plain
from cases import close
from networks import batch
from rankwise.numerics.factors import Factors, orthonormality_defect
from rankwise.numerics.init import truncated_svd
from tucker_kernels import tucker


def dense(a: rw.adapters.Adapter) -> dict[str, torch.Tensor]:
    zeros = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in LAYERS.items()}
    return zeros | {name: x.scale * x.factors.dense() for name, x in a.layers.items()}


def merged(a: rw.adapters.Adapter) -> list[torch.Tensor]:
    model = plain()
    rw.adapters.put_(model, a)
    rw.merge_(model, final=True)
    return [model.get_submodule(name).weight.detach() for name in LAYERS]


PAIRS = {
    "the same layers": ({"0": 2, "2": 3}, {"0": 1, "2": 2}),
    "other layers": ({"0": 2, "2": 1}, {"2": 2, "4": 3}),
    "full rank": ({"0": 5, "2": 5}, {"0": 5, "2": 2}),
    "a zero": ({"0": 2, "2": 0}, {"0": 0, "2": 0}),
}


@pytest.mark.parametrize("scale", [1.0, -0.3])
@pytest.mark.parametrize("pair", PAIRS)
def test_a_merged_sum_is_the_sum_of_the_dense_updates(pair, scale):
    a, b = adapter(1, PAIRS[pair][0]), adapter(2, PAIRS[pair][1], scale)
    total = 0.7 * a - b / 4
    before = [plain().get_submodule(name).weight.detach() for name in LAYERS]
    for W0, W, A, B in zip(
        before, merged(total), dense(a).values(), dense(b).values(), strict=True
    ):
        close(W, W0 + 0.7 * A - B / 4)
    for layer in total.layers.values():
        assert max(map(orthonormality_defect, (layer.factors.U, layer.factors.V))) < 1e-13


def test_the_operations_obey_the_rules_of_a_vector_space():
    a, b = adapter(1, {"0": 2, "2": 3}), adapter(2, {"2": 2, "4": 1})
    assert (a + b - (b + a)).norm() < 1e-13
    assert ((a + b) * 3.0 - (3 * a + 3 * b)).norm() < 1e-13
    assert (-a + a).norm() == 0.0
    assert math.isclose((2 * a).norm(), 2 * a.norm(), rel_tol=1e-14)
    assert (0 * a).norm() == 0.0
    assert (sum([a, b, b]) - (a + 2 * b)).norm() < 1e-13


def test_ranks_add_up_and_no_further_than_the_matrix():
    a, b = adapter(1, {"0": 2, "4": 3}), adapter(2, {"0": 1, "4": 3})
    assert (a + b).ranks == {"0": 3, "4": 4}
    assert (a + a).ranks == a.ranks


def test_opposite_adapters_cancel_to_zero_of_rank_one():
    a = adapter(1, {"0": 3, "2": 2})
    for nothing in (a - a, a + (-1) * a, 0.5 * a - a / 2):
        assert nothing.norm() == 0.0 and set(nothing.ranks.values()) == {1}
    model = plain()
    x = batch(0)[0]
    before = model(x)
    rw.adapters.put_(model, a - a)
    assert torch.equal(model(x), before)


def test_a_large_update_does_not_drown_a_small_one():
    a, b = adapter(1, {"0": 2}), adapter(2, {"0": 1})
    back = (1e8 * a + b) - 1e8 * a
    assert (back - b).norm() < 1e-6 * b.norm()


@pytest.mark.parametrize("limits", [{"rtol": 0.2}, {"max_rank": 1}, {"rtol": 0.05, "max_rank": 2}])
def test_rounding_tells_the_error_that_it_makes(limits):
    a = adapter(1, {"0": 4, "2": 5})
    b = a.rounded(**limits)
    assert abs((a - b).norm() / a.norm() - b.rounding.error) < 1e-12
    for cut in b.rounding.layers:
        assert (cut.after,) == ((b.ranks[cut.name],),)
        assert "max_rank" in limits or cut.relative <= limits["rtol"]
    assert a.rounding is None and "relative error" in str(b.rounding)


@pytest.mark.parametrize("rtol, error", [(1e-6, 1e-4), (1e-8, 1e-6)])
def test_an_exponential_mean_of_adapters_is_that_of_the_dense_updates(rtol, error):
    """What rounding leaves out adds up, to `rtol / (1 - 0.99)` at most."""
    model = plain()
    rw.adapt_(model, rank=2, select=["0", "2"])
    model[4].requires_grad_(False)
    optimizer = rw.Optimizer(model, lr=0.05, max_step=0.1, rank_rule=rw.Tolerance(rtol=1e-3))
    ema = rw.adapters.take(model)
    expected = dense(ema)
    for step in range(60):
        x, y = batch(step)
        optimizer.zero_grad()
        (model(x)[:, :2] - y).square().mean().backward()
        optimizer.step()
        now = rw.adapters.take(model)
        ema = (0.99 * ema + 0.01 * now).rounded(rtol=rtol)
        expected = {n: 0.99 * W + 0.01 * dense(now)[n] for n, W in expected.items()}
    size = math.sqrt(sum(float(W.square().sum()) for W in expected.values()))
    made = math.sqrt(sum(float((dense(ema)[n] - W).square().sum()) for n, W in expected.items()))
    assert size > 0.05 and made < error * size


def test_the_mean_averages_what_trains_densely_as_well():
    def of(seed: int) -> rw.adapters.Adapter:
        torch.manual_seed(9)
        model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
        torch.manual_seed(seed)
        rw.adapt_(model, rank=2, select="0", train="2")
        nn.init.normal_(model[2].weight)
        model(torch.randn(8, 6, dtype=torch.float64))
        return rw.adapters.take(model)

    a, b = of(0), of(1)
    ema = rw.adapters.mean([a, b], weights=[0.9, 0.1])
    close(ema.dense["2.weight"], 0.9 * a.dense["2.weight"] + 0.1 * b.dense["2.weight"])
    key = "1.running_mean"
    statistics = [x.stored.statistics[key] for x in (a, b, ema)]
    close(statistics[2], 0.9 * statistics[0] + 0.1 * statistics[1])
    assert ema.stored.statistics["1.num_batches_tracked"] == 1
    with pytest.raises(ValueError, match=r"'2.weight' differs.*`a.without_dense\(\)`.*mean"):
        a + b
    assert not (a.without_dense() + b.without_dense()).dense
    assert torch.equal((a.with_dense(b) + b).dense["2.weight"], b.dense["2.weight"])
    with pytest.raises(ValueError, match="'2.bias' is in one adapter only|'2.weight' is in one"):
        a + b.without_dense()


def test_what_has_no_sum_is_refused(draw):
    a = adapter(1, {"0": 2})
    other = nn.Sequential(nn.Linear(7, 5)).double()
    rw.adapt_(other)
    with pytest.raises(ValueError, match=r"layer '0' is a linear map of shape \(5, 6\) in one"):
        a + rw.adapters.take(other)
    kernel = rw.nn.TuckerConv2d(tucker(4, 3, (3, 3), (2, 2), draw))
    tuckers = rw.adapters.take(nn.Sequential(kernel))
    with pytest.raises(ValueError, match="layer '0' is a Tucker kernel, of which there is no sum"):
        tuckers + tuckers
    with pytest.raises(TypeError):
        a + 1
    with pytest.raises(TypeError):
        a * a
    for factor in (math.nan, math.inf):
        with pytest.raises(ValueError, match="is no adapter"):
            factor * a
    with pytest.raises(ValueError, match=r"`weights` must have the sum 1, got 0.5"):
        rw.adapters.mean([a, a], weights=[0.25, 0.25])
    with pytest.raises(ValueError, match="`weights` must be 2 numbers, one of each, got 1"):
        rw.adapters.mean([a, a], weights=[1.0])
    with pytest.raises(ValueError, match="one or more adapters"):
        rw.adapters.mean([])
    with pytest.raises(ValueError, match="give `rtol`"):
        a.rounded()


def test_whole_weights_in_factors_have_means_but_no_missing_layers(draw):
    def of(*names: str) -> rw.adapters.Adapter:
        W = torch.randn(5, 6, dtype=torch.float64, generator=draw)
        layers = {n: rw.LowRankLinear(truncated_svd(W, 2)) for n in names}
        return rw.adapters.take(nn.ModuleDict(layers))

    a, b = of("x", "y"), of("x", "y")
    close(
        (0.5 * a + 0.5 * b).layers["y"].factors.dense(),
        (a.layers["y"].factors.dense() + b.layers["y"].factors.dense()) / 2,
    )
    with pytest.raises(ValueError, match="'y' is no adapter but a whole weight"):
        a + of("x")


def test_values_do_not_change_and_print_what_they_are():
    a = adapter(1, {"0": 2, "2": 1})
    before = a.layers["0"].factors.S.clone()
    _ = a * 2 + a
    assert torch.equal(a.layers["0"].factors.S, before)
    assert repr(a) == "<Adapter of 2 layers, 38 parameters in factors>"
    assert "dense, trained: none" in str(a) and "linear" in str(a)
    with pytest.raises(AttributeError):
        a.stored = None
    assert isinstance(a.to(torch.float32).layers["0"].factors, Factors)
    assert a.to(torch.float32).layers["0"].factors.S.dtype == torch.float32
    with pytest.raises(ValueError, match="`dtype` must be"):
        a.to(torch.float16)


def test_values_are_copied_and_pickled():
    a = adapter(1, {"0": 2, "2": 1})
    for b in (copy.deepcopy(a), pickle.loads(pickle.dumps(a))):
        assert (a - b).norm() == 0.0 and b.ranks == a.ranks
