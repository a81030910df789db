"""A step of the optimizer, by hand and beside what the optimizer really calls."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import rankwise as rw
from machines import machine
from rankwise.cost.adapter import Adapted
from rankwise.cost.operation import observed
from rankwise.cost.turn import taking_turns


def layers(count, m=12, n=10, rank=2):
    return [Adapted(m, n, rank, rows=1, passes_on=True, size=4)] * count


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.seen.append((func.__name__, observed(func, args, kwargs or {}, out)))
        return out


def really(count, m, n, rank, turns):
    """Flops of products, bytes of sums, and number of matrices decomposed, in one step."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(n, m) for _ in range(count)])
    rw.adapt_(model, rank=rank)
    optimizer = rw.Optimizer(model, turns=turns)
    for _, layer in optimizer.layers:
        for p in layer.factor_parameters():
            p.grad = torch.randn_like(p)
    optimizer.step()
    optimizer.step()
    with Recorder() as recorder:
        optimizer.step()
    operations = [(name, o) for name, o in recorder.seen if o is not None]
    products = sum(o.product.flops for _, o in operations if o.product is not None)
    sums = sum(o.bytes for name, o in operations if o.product is None and "linalg" not in name)
    return products, sums


def foretold(count, m, n, rank, turns):
    operations = taking_turns(layers(count, m, n, rank), turns)
    products = sum(o.often * o.product.flops for o in operations if o.product is not None)
    return products, sum(o.often * o.bytes for o in operations if o.product is None)


@pytest.mark.parametrize("count, turns", [(4, 1), (4, 2), (8, 2), (4, 10**6)])
def test_products_and_bytes_are_those_of_the_optimizer(count, turns):
    shape = (count, 192, 256, 8, turns)
    (products, sums), (said_products, said_sums) = really(*shape), foretold(*shape)
    assert said_products == pytest.approx(products, rel=0.1, abs=1e-3 * 192 * 256)
    assert said_sums == pytest.approx(sums, rel=0.15)


def test_decompositions_by_hand():
    speed = 10.0
    once = 2 * 12 * 16 + 2 * 10 * 16 + 2 * 20 * 64
    for turns in (1, 2, 8):
        took = machine(algebra=speed).seconds(taking_turns(layers(4), turns))
        assert took == pytest.approx(4 * once / turns / speed)


def test_a_rank_that_doubled_does_not_fit_is_cut_to_the_shape():
    (first, second, *_) = taking_turns(layers(1, 3, 5, 3), 1)[1:]
    assert (first.orthogonal, second.orthogonal) == ((3, 3), (5, 5))


def test_calls_grow_with_stacks_far_more_than_with_layers():
    speeds = machine(call=1.0)

    def calls(maps):
        return speeds.seconds(taking_turns(maps, 2))

    one, same, other = (
        calls(layers(8)), calls(layers(16)), calls(layers(8) + layers(8, m=14))
    )  # fmt: skip
    assert one < same < other
    assert calls(layers(8) + layers(8, rank=1)) == same
    assert calls([]) == 0.0
