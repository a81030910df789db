"""What one operation of torch has to do, counted by hand."""

import pytest
import torch

from machines import machine
from rankwise.cost import Rate
from rankwise.cost.operation import Operation, observed, product

aten = torch.ops.aten


def seen(func, *args):
    return observed(func, args, {}, func(*args))


def test_a_product_by_hand():
    operation = seen(aten.mm.default, torch.ones(5, 6), torch.ones(6, 7))
    assert operation == product(5, 6, 7, 4)
    assert operation.product.flops == 2 * 5 * 6 * 7
    assert operation.bytes == 4 * (5 * 6 + 6 * 7 + 5 * 7)


def test_a_product_with_a_bias_and_a_stack_of_products():
    with_bias = seen(aten.addmm.default, torch.ones(7), torch.ones(5, 6), torch.ones(6, 7))
    assert with_bias.product == product(5, 6, 7, 4).product
    assert with_bias.bytes == product(5, 6, 7, 4).bytes + 4 * 7
    stack = seen(aten.bmm.default, torch.ones(3, 5, 6), torch.ones(3, 6, 7))
    assert stack.product == product(5, 6, 7, 4).product._replace(
        flops=3 * 2 * 5 * 6 * 7, stacked=True
    )


def test_a_convolution_runs_as_a_product_over_its_places():
    x, w = torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3)
    args = (x, w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    assert seen(aten.convolution.default, *args).product == (72, 4, 27, 2 * 72 * 4 * 27, False)


def test_attention_is_two_products_and_an_exponential_of_each_pair():
    q = torch.ones(2, 3, 5, 8)
    found = seen(aten._scaled_dot_product_flash_attention_for_cpu.default, q, q, q)
    assert found.product.flops == 2 * (2 * 3 * 5 * 5 * 8) * 2
    assert found.transcendental == 2 * 3 * 5 * 5


@pytest.mark.parametrize("view", [aten.t.default, aten.detach.default, aten.alias.default])
def test_a_view_is_a_call_that_moves_nothing(view):
    assert seen(view, torch.ones(5, 6)) == Operation()
    assert machine(flops=1.0, memory=1.0).seconds([seen(view, torch.ones(5, 6))]) == 0.0


def test_what_is_computed_in_place_moves_its_bytes():
    x = torch.ones(5, 6)
    assert seen(aten.add_.Tensor, x, torch.ones(5, 6)).bytes == 4 * 30 * 3


def test_an_expanded_tensor_is_read_once_and_a_lookup_reads_what_it_finds():
    expanded = torch.ones(6).expand(5, 6)
    assert seen(aten.clone.default, expanded).bytes == 4 * 6 + 4 * 30
    found = seen(aten.embedding.default, torch.ones(1000, 6), torch.tensor([1, 2, 3]))
    assert found.bytes == 2 * 4 * 3 * 6


def test_an_allocation_writes_nothing():
    assert seen(aten.empty_like.default, torch.ones(5)) == Operation()


def test_numbers_that_take_long_are_counted_once():
    x = torch.ones(5, 6)
    assert seen(aten.gelu.default, x).transcendental == 30
    assert seen(aten._softmax.default, x, -1, False).transcendental == 30
    assert seen(aten._safe_softmax.default, x, -1).transcendental == 30
    assert seen(aten.native_dropout.default, x, 0.5, True).random == 30
    assert seen(aten.sigmoid_.default, x).transcendental == 30
    for simple in (seen(aten.add.Tensor, x, x), seen(aten.relu.default, x)):
        assert (simple.transcendental, simple.random) == (0, 0)


def test_shapes_alone_are_enough():
    real = seen(aten.mm.default, torch.ones(5, 6), torch.ones(6, 7))
    shapes = (torch.ones(5, 6, device="meta"), torch.ones(6, 7, device="meta"))
    assert seen(aten.mm.default, *shapes) == real


def test_a_roofline_takes_the_longer_of_computing_and_moving():
    work = product(10, 20, 30, 4)
    computing, moving = work.product.flops / 1e6, work.bytes / 1e3
    for flops, memory in ((1e6, 1e12), (1e12, 1e3), (1e6, 1e3)):
        took = machine(flops=flops, memory=memory).seconds([work])
        assert took == pytest.approx(max(work.product.flops / flops, work.bytes / memory))
    assert machine(flops=1e6, call=2.0).seconds([work] * 3) == pytest.approx(3 * (computing + 2))
    half = machine(memory=1e3, call=2.0).seconds([work._replace(often=0.5)])
    assert half == pytest.approx((moving + 2) / 2)


def test_calls_hide_behind_what_an_accelerator_computes_or_the_other_way_round():
    work = [product(10, 10, 10, 4)] * 3
    assert machine(flops=2e3, call=0.1, overlaps=True).seconds(work) == pytest.approx(3.0)
    assert machine(flops=2e3, call=7.0, overlaps=True).seconds(work) == pytest.approx(21.0)


@pytest.mark.parametrize(
    "shape, speed", [((2, 64, 64), 1.0), ((64, 64, 2), 10.0), ((64, 2, 64), 100.0)]
)
def test_the_speed_of_a_product_is_that_of_its_least_extent(shape, speed):
    speeds = machine(
        rows=Rate((2.0,), (1.0,)), columns=Rate((2.0,), (10.0,)), inner=Rate((2.0,), (100.0,))
    )
    assert speeds.seconds([product(*shape, 4)]) == pytest.approx(2 * 2 * 64 * 64 / speed)


def test_a_stack_is_no_faster_than_its_small_products():
    small = product(8, 8, 8, 4)
    stack = small._replace(product=small.product._replace(stacked=True))
    speeds = machine(flops=100.0, stacked=Rate((4.0, 16.0), (1.0, 4.0)))
    assert speeds.seconds([small]) == pytest.approx(2 * 512 / 100)
    assert speeds.seconds([stack]) == pytest.approx(2 * 512 / 2)
    assert machine(flops=100.0).seconds([stack]) == pytest.approx(2 * 512 / 100)


def test_a_pass_has_calls_of_its_own():
    work = [Operation(), Operation(calls=2.0)]
    assert machine(call=2.0).seconds(work) == pytest.approx(6.0)
    assert machine(call=2.0).seconds(work, 10.0) == pytest.approx(30.0)


def test_linear_algebra_by_its_sizes():
    work = [Operation(orthogonal=(50, 6)), Operation(singular=4)]
    took = machine(algebra=10.0).seconds(work)
    assert took == pytest.approx((2 * 50 * 36 + 20 * 64) / 10)


def test_nothing_takes_no_time():
    assert machine(flops=1.0, memory=1.0).seconds([]) == 0.0
    assert machine(flops=1.0, memory=1.0).seconds([product(0, 4, 4, 4)._replace(bytes=0)]) == 0.0
