"""Curves on a page: thinning keeps extremes, means skip what is not finite, ticks are round."""

from math import isfinite, isnan, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.report.page.course import column, smoothed, thinned
from rankwise.report.page.layers import split
from rankwise.report.page.scale import Scale, linear, logarithmic, short
from rankwise.report.page.svg import Markup, line, tag

VALUES = st.lists(st.floats(-1e6, 1e6) | st.just(nan), min_size=1, max_size=400)


@given(VALUES, st.integers(10, 60))
def test_thinning_keeps_the_ends_and_the_extremes(values, most):
    kept = thinned(values, most)
    assert kept == sorted(set(kept)) and len(kept) <= most
    assert (kept[0], kept[-1]) == (0, len(values) - 1)
    finite = [v for v in values if isfinite(v)]
    if finite:
        shown = [values[i] for i in kept if isfinite(values[i])]
        assert (min(shown), max(shown)) == (min(finite), max(finite))


@given(VALUES, st.integers(1, 30))
def test_a_running_mean_is_a_mean_of_neighbours(values, width):
    for i, mean in enumerate(smoothed(values, width)):
        near = values[max(0, i - width // 2) : i + (width + 1) // 2]
        finite = [v for v in near if isfinite(v)]
        assert isnan(mean) if not finite else mean == pytest.approx(
            sum(finite) / len(finite), abs=1e-5
        )  # fmt: skip


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=30), st.booleans())
def test_a_linear_axis_holds_its_values_and_has_round_ticks_inside(values, from_zero):
    axis = linear(values, from_zero=from_zero)
    assert all(-1e-9 <= axis.at(v) <= 1 + 1e-9 for v in values)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 8
    assert all(-1e-6 <= axis.at(t) <= 1 + 1e-6 for t in ticks)


@given(st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=30))
def test_a_logarithmic_axis_holds_its_values_and_has_ticks_inside(values):
    axis = logarithmic(values)
    assert all(-1e-9 <= axis.at(v) <= 1 + 1e-9 for v in values)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 12
    assert all(-1e-6 <= axis.at(t) <= 1 + 1e-6 for t in ticks)


def test_ticks_are_multiples_of_one_two_or_five():
    assert Scale(0, 1).ticks() == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert Scale(-3, 47).ticks() == [0, 10, 20, 30, 40]
    assert Scale(1e-4, 10, log=True).ticks() == [1e-4, 1e-3, 1e-2, 0.1, 1, 10]


@pytest.mark.parametrize(
    "value, text",
    [
        (0, "0"), (0.05, "0.05"), (0.003, "0.003"), (0.0005, "5e-4"), (1200, "1,200"),
        (24000, "24k"), (3.5e6, "3.5M"), (-2e9, "-2G"), (1.25e-7, "1.25e-7"),
    ],
)  # fmt: skip
def test_numbers_on_an_axis_are_short(value, text):
    assert short(value) == text


def test_what_is_not_finite_is_a_gap():
    steps, values = column(
        [{"step": 1, "loss": 2.0}, {"step": 2, "loss": nan}, {"step": 3}], "loss"
    )
    assert steps == [1, 2] and values[0] == 2.0 and isnan(values[1])
    assert line([(0, 1), (1, nan), (2, 3), (3, 4)]) == "M0 1h0M2 3L3 4"


def test_elements_are_escaped_once():
    inner = tag("b", "<&>", title='"x"')
    assert inner == '<b title="&quot;x&quot;">&lt;&amp;&gt;</b>'
    assert tag("p", inner, "a<b") == f"<p>{inner}a&lt;b</p>"
    assert isinstance(inner, Markup)


@pytest.mark.parametrize(
    "name, parts",
    [
        ("encoder.layer.3.output.dense", ("layer 3", "output.dense")),
        ("3.attention", ("3", "attention")),
        ("1", ("", "1")),
        ("head", ("", "head")),
        ("", ("", "model")),
        ("stage.0.blocks.2.conv", ("stage 0", "blocks.2.conv")),
    ],
)
def test_a_name_is_a_block_and_a_part(name, parts):
    assert split(name) == parts
