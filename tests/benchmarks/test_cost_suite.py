"""The entry of the cost suite: what it measures, writes and ends with."""

import json
import sys

import pytest

from pages import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from cost.suite import QUICK, Options, Scope, judged, main, write  # noqa: E402


def results(ratio):
    machine = {"processor": "P", "threads": 1, "cores": 2, "device": "cpu", "versions": {},
               "date": "D", "load": 0.0}  # fmt: skip
    layer = {"case": "L", "contender": "rankwise", "seconds": 1.0, "saved bytes": 0}
    return {"machine": machine, "layer": [{**layer, "to LoRA": [ratio] * 3}]}


@pytest.mark.parametrize("ratio, end", [(1.0, 0), (1.1, 0), (1.2, 1), (0.5, 0)])
def test_the_gate_is_closed_where_a_ratio_rose(ratio, end, tmp_path, capsys):
    baseline = tmp_path / "baseline.json"
    assert judged(results(1.0), Options(tmp_path, renew=True, baseline=baseline)) == 0
    assert judged(results(ratio), Options(tmp_path, gate=True, baseline=baseline)) == end
    assert ("| worse | time | L: rankwise, to LoRA | 1.000 |" in capsys.readouterr().out) == end


def test_without_a_gate_nothing_is_judged(tmp_path):
    assert judged(results(9.0), Options(tmp_path, baseline=tmp_path / "none.json")) == 0


def test_what_is_written_is_json_as_others_read_it(tmp_path):
    write(results(1.0), tmp_path)
    text = (tmp_path / "cost.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["layer"][0]["contender"] == "rankwise"
    assert (
        "| L | rankwise | 1e+03 | 1.00 (1.00 to 1.00) | 0.00 |"
        in (tmp_path / "cost.md").read_text()
    )


def test_cases_are_chosen_by_their_names():
    chosen = Scope().only("MiniLM 16x40")
    assert [case.rank for case in chosen.cases] == [8, 16, 64]
    assert chosen.shapes == () and chosen.tasks == Scope().tasks
    assert QUICK.only("") == QUICK


def test_a_level_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="--levels are layer, .*; got speed"):
        main(Options(levels=("speed",)))
