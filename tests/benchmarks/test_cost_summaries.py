"""Statistics of the cost suite on numbers whose answers are known."""

import sys

import pytest

from pages import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from alternating import alternate, rounds_of  # noqa: E402
from cost.geometry import exponents  # noqa: E402
from cost.summaries import exponent, quartiles, ratio_of_sums, ratios  # noqa: E402


def test_quartiles_are_those_of_the_sample():
    assert quartiles([5.0, 1.0, 2.0, 4.0, 3.0]) == (2.0, 3.0, 4.0)
    assert quartiles([1.0, 2.0]) == (1.25, 1.5, 1.75)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_ratios_are_within_rounds_so_that_drift_cancels():
    drift = [1.0, 3.0, 0.5, 10.0]
    own = {i: 2.0 * d for i, d in enumerate(drift)}
    other = dict(enumerate(drift))
    assert ratios(own, other) == [2.0] * 4


def test_who_sits_out_is_compared_where_both_are():
    own, other = {0: 1.0, 5: 3.0}, {i: 1.0 for i in range(5)} | {5: 2.0}
    assert ratios(own, other) == [1.0, 1.5]
    assert ratio_of_sums(own, other) == pytest.approx(4 / 3)


def test_a_rare_long_step_is_in_the_ratio_of_sums_and_not_in_the_median():
    own = dict.fromkeys(range(9), 1.0) | {9: 11.0}
    other = dict.fromkeys(range(10), 1.0)
    assert quartiles(ratios(own, other)).median == 1.0
    assert ratio_of_sums(own, other) == 2.0


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5, -1.0])
def test_the_exponent_of_a_power_is_it(power):
    sizes = [4, 8, 16, 64, 100]
    assert exponent(sizes, [3.0 * n**power for n in sizes]) == pytest.approx(power, abs=1e-12)


def test_a_constant_beside_a_power_lowers_the_exponent():
    sizes = [10, 100, 1000]
    assert 0.5 < exponent(sizes, [n + 50 for n in sizes]) < 1.0


def test_growth_is_told_over_all_sizes_and_over_the_largest():
    found = exponents({10: 1.0, 100: 1.0, 200: 2.0, 400: 4.0})
    assert found["of the last"] == pytest.approx(1.0)
    assert 0 < found["of all"] < 0.5


def test_what_costs_less_than_adamw_has_no_exponent():
    assert exponents({10: -1.0, 20: 1.0, 30: 2.0}) == {"of all": None, "of the last": None}


class Stopwatch:
    """A clock that moves only when told."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time

    def takes(self, *seconds):
        left = list(seconds)

        def action():
            self.time += left.pop(0) if len(left) > 1 else left[0]

        return action


def test_rounds_take_turns_after_two_that_do_not_count():
    clock = Stopwatch()
    actions = {"a": clock.takes(100.0, 100.0, 1.0, 2.0, 3.0), "b": clock.takes(0.5)}
    times = rounds_of(actions, seconds=0.0, clock=clock)
    assert times == {"a": [1.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0], "b": [0.5] * 7}


def test_rounds_fill_the_time_that_is_given():
    clock = Stopwatch()
    times = rounds_of({"a": clock.takes(2.0), "b": clock.takes(3.0)}, seconds=100.0, clock=clock)
    assert len(times["a"]) == len(times["b"]) == 20


def test_each_action_is_done_in_each_round():
    done = []
    alternate({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, seconds=0.0)
    assert "".join(done) == "ab" * 9
