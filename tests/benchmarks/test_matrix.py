"""The matrix of versions: its rows, how tests are counted, what is said of a row not to be had."""

import re
import sys

import pytest

from pages import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from matrix import CORE, ROWS, Failed, Row, counted, interpreter, lines, outcome  # noqa: E402

PROJECT = (ROOT / "pyproject.toml").read_text()


def test_the_lowest_versions_that_the_package_asks_for_are_tested():
    python = re.search(r'requires-python = ">=([\d.]+)"', PROJECT)[1]
    torch = re.search(r'"torch>=([\d.]+)"', PROJECT)[1]
    assert any(r.python == python and r.torch.startswith(f"{torch}.") for r in ROWS)


def test_names_of_rows_differ():
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_every_folder_of_the_core_is_tested():
    assert all((ROOT / tests).is_dir() for tests in CORE)


def test_only_rows_with_transformers_install_and_test_it():
    alone, both = Row("3.10", "2.9.0"), Row("3.10", "2.9.0", "5.21.1")
    assert alone.packages == ["-e", str(ROOT)] and alone.tests == CORE
    assert "transformers==5.21.1" in both.packages and set(both.tests) > set(CORE)


def test_tests_are_counted_as_pytest_reports_them(tmp_path):
    report = tmp_path / "report.xml"
    suite = '<testsuite name="pytest" errors="1" failures="2" skipped="3" tests="10"/>'
    report.write_text(f"<testsuites>{suite}</testsuites>")
    assert counted(report) == {"passed": 4, "failed": 3, "skipped": 3}


def test_a_row_without_an_interpreter_is_told_and_fails_nothing(tmp_path):
    with pytest.raises(Failed, match="no Python 3.99"):
        interpreter("3.99")
    told = outcome(Row("3.99", "2.13.0"), tmp_path, keep=False)
    assert "failed" not in told
    assert list(lines([told]))[-1] == "| 3.99 | 2.13.0 | - | - | no Python 3.99 |  |  |"
