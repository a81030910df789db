"""The matrix of versions: its rows, how tests are counted, what is said of a row not to be had."""

import json
import re
import subprocess
import sys

import pytest

from pages import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from matrix import (  # noqa: E402
    CORE,
    EXTRAS,
    ROWS,
    Failed,
    Row,
    counted,
    interpreter,
    kept,
    lines,
    notes,
    outcome,
)

PROJECT = (ROOT / "pyproject.toml").read_text()


def test_the_lowest_versions_that_the_package_asks_for_are_tested():
    python = re.search(r'requires-python = ">=([\d.]+)"', PROJECT)[1]
    torch, transformers = (
        re.search(rf'"{name}>=([\d.]+)"', PROJECT)[1] + "." for name in ("torch", "transformers")
    )
    least = [r for r in ROWS if r.python == python and r.torch.startswith(torch)]
    assert any(r.transformers is None for r in least)
    assert any((r.transformers or "").startswith(transformers) for r in least)


def test_the_interpreters_that_the_package_names_are_tested():
    assert {row.python for row in ROWS} == set(re.findall(r":: (3\.\d+)\"", PROJECT))


def test_names_of_rows_differ():
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_every_folder_of_the_core_is_tested():
    assert all((ROOT / tests).is_dir() for tests in CORE)


def test_only_rows_with_transformers_install_and_test_it():
    alone, both = Row("3.10", "2.9.0"), Row("3.10", "2.9.0", "5.21.1")
    assert alone.packages == ["-e", str(ROOT)] and alone.tests == CORE
    assert "transformers==5.21.1" in both.packages and set(both.tests) > set(CORE)


def test_every_extra_that_is_installed_is_one_of_the_package():
    assert all(re.search(rf"^{extra} = \[", PROJECT, re.M) for extra in EXTRAS.split(","))


def test_the_lowest_row_takes_the_bound_of_every_package_of_the_extras():
    (lowest,) = (row for row in ROWS if row.lowest)
    packages = {package.split("==")[0] for package in lowest.packages if package.endswith(".*")}
    assert packages >= {"accelerate", "lightning", "matplotlib", "peft", "transformers", "trl"}
    for name in packages:
        assert len(set(re.findall(rf'"{name}>=([\d.]+)"', PROJECT))) == 1, name


SUITE = """
import pytest

@pytest.fixture
def broken():
    raise OSError

def test_good(): pass
def test_bad(): assert False
def test_without_a_start(broken): pass
@pytest.mark.parametrize("n", [1, 2])
def test_absent(n): pytest.importorskip("no_such_package")
@pytest.mark.xfail(reason="of a compiler")
def test_expected(): assert False
"""


def test_tests_are_counted_as_pytest_reports_them(tmp_path):
    (tmp_path / "test_all.py").write_text(SUITE)
    (tmp_path / "test_file.py").write_text('import pytest\npytest.importorskip("no_such_package")')
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    subprocess.run([*command, f"--junitxml={report}"], cwd=tmp_path, capture_output=True)
    told = counted(report)
    assert (told["passed"], told["failed"], told["skipped"]) == (1, 2, 4)
    assert told["failures"] == ["test_all::test_bad", "test_all::test_without_a_start"]
    absent = "could not import 'no_such_package': No module named 'no_such_package'"
    assert told["reasons"] == {absent: 2, f"a file, {absent}": 1, "of a compiler": 1}
    named = list(notes([{**Row("3.10", "2.9.0")._asdict(), **told}]))
    assert named[0] == "- py3.10-2.9.0: failed test_all::test_bad"
    assert "- py3.10-2.9.0: 1 skipped, of a compiler" in named


def test_the_table_is_of_all_rows_that_a_folder_holds(tmp_path):
    for row in (ROWS[2], ROWS[0]):
        told = {**row._asdict(), "passed": 3, "failed": 0, "skipped": 1}
        (tmp_path / f"{row.name}.json").write_text(json.dumps(told))
    assert [told["python"] for told in kept(tmp_path)] == [ROWS[0].python, ROWS[2].python]


def test_a_row_without_an_interpreter_is_told_and_fails_nothing(tmp_path):
    with pytest.raises(Failed, match="no Python 3.99"):
        interpreter("3.99")
    told = outcome(Row("3.99", "2.13.0"), tmp_path, keep=False)
    assert "failed" not in told
    assert list(lines([told]))[-1] == "| 3.99 | 2.13.0 | - | - | - | no Python 3.99 |  |  |"
