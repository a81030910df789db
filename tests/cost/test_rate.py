"""Speeds between the sizes at which they were measured."""

import pytest

from rankwise.cost import Rate


def test_a_power_law_is_met_exactly_between_two_sizes():
    rate = Rate((1.0, 16.0), (3.0, 3.0 * 16**0.7))
    for size in (1.0, 2.0, 5.5, 16.0):
        assert rate.at(size) == pytest.approx(3.0 * size**0.7, rel=1e-12)


@pytest.mark.parametrize(
    "size, speed", [(0.0, 2.0), (1.0, 2.0), (4.0, 5.0), (9.0, 3.0), (1e9, 3.0)]
)
def test_sizes_that_were_measured_and_what_is_beyond(size, speed):
    assert Rate((2.0, 4.0, 8.0), (2.0, 5.0, 3.0)).at(size) == pytest.approx(speed, rel=1e-12)
