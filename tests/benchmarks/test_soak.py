"""The long run in short: every bound holds, and one that is broken is told."""

import copy
import sys

import pytest

from pages import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from soak import as_table, checks, parts  # noqa: E402

STEPS = 300
MEMORY = "growth of resident memory"


@pytest.fixture(scope="module")
def results():
    return {name: part() for name, part in parts(STEPS, 0).items()}


def broken(results):
    return {check.what for check in checks(results) if not check.holds}


def test_every_bound_holds_in_a_short_run(results):
    # What a process takes to get going is more than a short run can tell from growth.
    assert broken(results) - {MEMORY} == set()


def test_ranks_grow_and_are_cut_in_every_cycle(results):
    run = results["float32"]
    assert run["rank_changes"] >= 2 * STEPS / 25 - 2
    assert all(s["least_rank"] < s["largest_rank"] for s in run["samples"])
    assert results["still"]["ranks"] == [6, 10]


def test_the_run_is_taken_up_from_its_file_to_the_last_bit(results):
    assert results["float32"]["restarts"] == STEPS // 25
    assert results["float32"]["restart_gap"] == results["float64"]["restart_gap"] == 0.0


@pytest.mark.parametrize(
    "part, measure, change, what",
    [
        ("float32", "resident_bytes", lambda i, b: 1e9 * 1.2**i, MEMORY),
        ("float32", "live_tensors", lambda i, count: i, "tensors more than before"),
        ("float32", "defect", lambda i, defect: float("nan"), "defect of bases in float32"),
        ("float64", "defect", lambda i, defect: 1e-12, "defect of bases in float64"),
        ("float64", "loss", lambda i, loss: 1.05 * loss, "mean loss, float32 to float64"),
        ("still", "drift", lambda i, drift: 1e-4, "rate 0: drift of W a step"),
        ("twins", "gap", lambda i, gap: gap + 1e-3, "twins: gap of W"),
    ],
    ids=["memory", "tensors", "nan", "bases", "loss", "drift", "gap"],
)
def test_wear_breaks_its_bound(results, part, measure, change, what):
    worn = copy.deepcopy(results)
    for i, sample in enumerate(worn[part]["samples"]):
        sample[measure] = change(i, sample[measure])
    # Other tests of the process let go of tensors and of memory at any time.
    assert what in broken(worn)
    assert broken(worn) - broken(results) <= {what, MEMORY}
    (line,) = (line for line in as_table(checks(worn)).splitlines() if f"| {what} |" in line)
    assert line.endswith("| broken |")
