"""Bytes that the cost suite counts, beside counts by hand."""

import sys

import pytest
import torch
from torch import nn

from pages import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from cost.memory import LiveBytes, peak_of, saved_bytes, storage_bytes  # noqa: E402

CPU = torch.device("cpu")
FLOAT = 4


def test_a_chain_holds_two_results_at_once():
    x = torch.ones(100)
    with LiveBytes([x]) as live:
        for _ in range(5):
            # The old `x` dies when the name is given away: `held` is alive at first, then freed.
            x = x * 2
    assert live.before == 100 * FLOAT
    assert live.peak == 2 * 100 * FLOAT
    assert live.present == 100 * FLOAT


def test_views_and_writes_in_place_cost_nothing():
    x = torch.ones(10, 10)
    with LiveBytes([x]) as live:
        y = x.mT.reshape(5, 20)[:2]
        x.mul_(2).add_(1)
        z = x.view(-1)
    assert live.peak == 2 * 100 * FLOAT  # `reshape` of a transpose is a copy
    assert len(z) + len(y) == 102


def test_what_grows_in_place_counts_in_its_present_size():
    x = torch.ones(10)
    with LiveBytes([x]) as live:
        x.resize_(50)
    assert live.present == live.peak == 50 * FLOAT


def test_what_dies_after_the_block_is_no_part_of_the_peak():
    with LiveBytes() as live:
        x = torch.zeros(7)
    del x
    assert (live.peak, live.present) == (7 * FLOAT, 0)


def test_the_peak_of_a_layers_step_is_what_one_adds_up_by_hand():
    tokens, n, m = 6, 5, 3
    layer = nn.Linear(n, m, bias=False)
    x, dy = torch.randn(tokens, n), torch.ones(tokens, m)

    def run() -> None:
        layer(x).backward(dy)

    own = m * n * FLOAT
    peak = peak_of(run, layer.parameters(), CPU)
    # The output dies before its gradient with respect to the weight is there: `backward` does not
    # need it, but the caller holds it until the call is over.
    assert peak.above == tokens * m * FLOAT + own
    assert peak.total == own + peak.above
    assert peak_of(run, [*layer.parameters(), layer.weight.grad], CPU).above >= peak.above


def test_the_peak_is_the_same_each_time():
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    x = torch.randn(32, 8)

    def run() -> None:
        model(x).square().sum().backward()
        model.zero_grad()

    assert len({peak_of(run, model.parameters(), CPU) for _ in range(3)}) == 1


def test_what_an_optimizer_keeps_is_counted():
    layer = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)

    def run() -> None:
        layer(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    with LiveBytes(layer.parameters()) as live:
        run()
    momentum = 20 * FLOAT
    assert live.present - live.before == momentum


def test_tied_weights_count_once():
    a, b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    b.weight = a.weight
    assert storage_bytes([a.weight, b.weight, a.weight.mT]) == 9 * FLOAT


@pytest.mark.parametrize("trained, saved", [(False, 0), (True, 6 * 5)])
def test_a_linear_map_saves_its_input_where_its_weight_trains(trained, saved):
    layer = nn.Linear(5, 3).requires_grad_(trained)
    x = torch.randn(6, 5, requires_grad=True)
    with saved_bytes(layer.parameters()) as count:
        y = layer(x)
        assert count() == saved * FLOAT
    assert y.shape == (6, 3)


def test_what_two_operations_save_counts_once_and_parameters_never():
    layer = nn.Linear(5, 3)
    x = torch.randn(6, 5, requires_grad=True)
    with saved_bytes(layer.parameters()) as count:
        h = torch.tanh(layer(x))  # saves `x`, and what it returns
        y = (h * h + layer(x)).sum()  # saves `h` again, and `x` again
        assert count() == (6 * 5 + 6 * 3) * FLOAT
    y.backward()


@pytest.mark.parametrize("function", [torch.exp, torch.sin], ids=["its result", "its input"])
def test_what_a_dropped_graph_had_saved_is_gone(function):
    x = torch.randn(6, 5, requires_grad=True)
    with saved_bytes([]) as count:
        y = function(x).sum()
        assert count() == 6 * 5 * FLOAT
        del y
        assert count() == 0
