"""A short drill, and that it would find a difference."""

import json
import subprocess
import sys

import pytest

from pages import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from drill.faults import Row  # noqa: E402
from drill.job import Difference, difference  # noqa: E402
from drill.kills import Tally, unreadable  # noqa: E402
from drill.suite import passed  # noqa: E402


@pytest.fixture(scope="module")
def drilled(tmp_path_factory):
    """The folder of five kills."""
    folder = tmp_path_factory.mktemp("drill") / "runs"
    asked = ["--kills", "5", "--steps", "8", "--faults", "0.02", "--output", str(folder)]
    command = [sys.executable, str(ROOT / "benchmarks" / "drill" / "suite.py"), *asked]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_a_run_that_is_killed_and_damaged_ends_as_if_nobody_had_touched_it(drilled):
    metrics = json.loads((drilled / "metrics.json").read_text())
    assert metrics["passed"]
    assert metrics["kills"]["kills"] == 5 and metrics["kills"]["runs"] >= 1
    assert all(set(d.values()) == {0.0} for d in metrics["kills"]["differences"])
    assert [row["fault"] for row in metrics["faults"] if row["tried"] < 1] == []
    assert "largest difference of weights | 0.0" in (drilled / "drill.md").read_text()
    assert (drilled / "drill.png").read_bytes().startswith(b"\x89PNG")


def test_ranks_changed_on_the_way(drilled):
    lines = (drilled / "uninterrupted" / "history.jsonl").read_text().splitlines()
    assert len({str(json.loads(line)["ranks"]) for line in lines if "ranks" in line}) > 1


def test_a_difference_would_be_found(drilled):
    one, other = drilled / "uninterrupted", drilled / "killed-0"
    assert difference(one, other) == Difference(0.0, 0.0, 0.0)
    history = other / "history.jsonl"
    lines = history.read_text().splitlines()
    changed = json.loads(lines[3])
    changed["loss"] += 1e-12
    history.write_text("\n".join([*lines[:3], json.dumps(changed), *lines[4:]]) + "\n")
    assert 0 < difference(one, other).history < 1e-11
    history.write_text("\n".join(lines[:-1]) + "\n")
    assert difference(one, other).history == float("inf")


def test_a_damaged_file_would_be_found(drilled):
    folder = drilled / "uninterrupted"
    assert unreadable(folder, set()) == []
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    (found,) = unreadable(folder, set())
    assert str(file) in found
    assert unreadable(folder, {file}) == []


def test_what_differs_is_not_passed():
    good = Row("x", 3, 3, 3)
    assert passed(Tally(), [good])
    assert not passed(Tally(differences=[Difference(0.0, 1e-300, 0.0)]), [good])
    assert not passed(Tally(unreadable=["x"]), [good])
    assert not passed(Tally(failed=["x"]), [good])
    assert not passed(Tally(), [good._replace(named=2)])
    assert not passed(Tally(), [good._replace(unchanged=2)])
