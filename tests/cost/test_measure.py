"""Speeds of this machine: positive, in order, and measured once."""

import pytest
import torch

from rankwise.cost import measure_machine
from rankwise.cost.measure import shortest


def test_speeds_are_positive_and_measured_once():
    state = torch.get_rng_state()
    found = measure_machine()
    assert torch.equal(torch.get_rng_state(), state)
    assert measure_machine("cpu", torch.float32) is found
    assert found.call > 0 and found.adamw_call > 0 and not found.overlaps
    rates = [v for v in found if hasattr(v, "speeds")]
    assert len(rates) == 8
    for rate in rates:
        assert all(0 < speed < 1e15 for speed in rate.speeds)
    assert found.forward_call > 0 and found.backward_call > 0
    # Wide products are faster than thin ones, on anything.
    assert found.rows.at(512) > found.rows.at(1)


def test_a_measurement_is_about_as_long_as_what_it_measures():
    a = torch.ones(2**20)
    one, ten = (
        shortest(lambda n=n: [a.add_(1.0) for _ in range(n)], torch.device("cpu")) for n in (1, 10)
    )
    assert 3 < ten / one < 30


@pytest.mark.parametrize(
    "arguments, told",
    [(("meta",), "`device` is meta"), (("cpu", torch.int8), "`dtype` must be floating point")],
)
def test_what_cannot_be_measured_is_told(arguments, told):
    with pytest.raises(ValueError, match=told):
        measure_machine(*arguments)
