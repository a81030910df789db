"""The gate of the cost suite: what it lets through and what not."""

import json
import math
import sys

import pytest

from pages import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from cost.gate import TOLERANCES, as_table, compare, failures, ratios_of  # noqa: E402


def both(kind, before, now):
    return [
        {**{k: {} for k in TOLERANCES}, kind: {} if math.isnan(v) else {"x": v}}
        for v in (before, now)
    ]


NAN = float("nan")


@pytest.mark.parametrize(
    "kind, before, now, verdict",
    [
        ("time", 1.0, 1.149, "as before"),
        ("time", 1.0, 1.151, "worse"),
        ("time", 2.0, 2.31, "worse"),
        ("time", 1.0, 0.84, "better"),
        ("memory", 1.0, 1.019, "as before"),
        ("memory", 1.0, 1.021, "worse"),
        ("memory", 0.5, 0.5, "as before"),
        ("memory", 1.0, 0.97, "better"),
        ("time", 1.0, NAN, "not measured"),
        ("time", NAN, 1.0, "new"),
    ],
)
def test_the_verdict(kind, before, now, verdict):
    (change,) = compare(*both(kind, before, now))
    assert change.verdict == verdict
    assert bool(failures([change])) == (verdict in ("worse", "not measured"))


def test_a_ratio_that_came_out_as_no_number_does_not_pass():
    before, _ = both("time", 1.0, 1.0)
    (change,) = failures(compare(before, {"time": {"x": NAN}, "memory": {}}))
    assert change.verdict == "not measured"


def test_the_table_begins_with_what_fails():
    before = {"time": {"a": 1.0, "b": 1.0}, "memory": {"c": 1.0}}
    now = {"time": {"a": 1.0, "b": 2.0}, "memory": {"c": 1.0}}
    first, *rest = as_table(compare(before, now)).splitlines()[2:]
    assert first == "| worse | time | b | 1.000 | 2.000 | +100.0% |"
    assert [line.split(" | ")[0] for line in rest] == ["| as before"] * 2


def row(contender, **others):
    return {"case": "C", "contender": contender, "to LoRA": [0.8, 0.9, 1.0], **others}


def test_only_ours_is_judged():
    layers = [row("LoRA"), row("rankwise")]
    found = ratios_of({"layer": layers})
    assert found == {"time": {"C: rankwise, to LoRA": 0.9}, "memory": {}}


def test_a_model_is_judged_by_its_time_and_its_bytes():
    parts = {"peak": 0.7, "peak_total": 0.8, "activations": 0.5, "state": 0.1, "gradients": 0.1}
    model = row("rankwise adapting", **{"to frozen": 1.1, "bytes to LoRA": parts})
    found = ratios_of({"model": [model]})
    assert set(found["time"].values()) == {0.9, 1.1}
    assert set(found["memory"].values()) == {0.7, 0.8, 0.5, 0.1}


def test_what_is_measured_in_the_short_suite_has_a_baseline():
    from cost import layer, model

    content = json.loads((ROOT / "benchmarks/cost/baseline.json").read_text())
    assert set(content["machine"]["versions"]) >= {"torch", "peft"}
    times = content["ratios"]["time"]
    cases = [case.label for case in (*layer.QUICK, *model.QUICK)]
    assert {name.partition(": ")[0] for name in times} == set(cases)


def test_the_whole_suite_has_all_that_the_short_one_has():
    from cost import layer, model

    assert set(layer.QUICK) <= set(layer.SHAPES)
    assert {case.label for case in model.QUICK} <= {case.label for case in model.CASES}
