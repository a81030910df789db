"""An installation examined: facts to findings, and trials that find what is broken."""

import os
import sys
import time
from pathlib import Path

import pytest
import torch

import rankwise as rw
from rankwise.check import Finding, Verdict
from rankwise.nn.linear import LowRankLinear
from rankwise.recipes.doctor import DoctorOptions, doctor
from rankwise.recipes.installation import (
    Requirement,
    at_least,
    cache_finding,
    command_version,
    extra_finding,
    package_finding,
    parsed,
    python_finding,
    requirements,
    threads_finding,
    torch_finding,
    usable_cores,
    version_finding,
)
from rankwise.recipes.trials import descent, gradients, lapack, resume, trial_findings

OK, WARNING, FAULT = Verdict.OK, Verdict.WARNING, Verdict.FAULT


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("torch>=2.9", Requirement("torch", "2.9", "")),
        ("tyro>=1; extra == 'finetune'", Requirement("tyro", "1", "finetune")),
        ('onnx>=1.18; extra == "dev-all"', Requirement("onnx", "1.18", "dev-all")),
        ("rankwise[onnx]; extra == 'dev'", Requirement("rankwise", "0", "dev")),
    ],
)
def test_a_requirement_is_taken_apart(line, expected):
    assert parsed(line) == expected


def test_the_own_requirements_are_known():
    always = {r.name for r in requirements() if not r.extra}
    assert always == {"torch", "safetensors"}
    assert requirements("rankwise-no-such-package") == []


@pytest.mark.parametrize(
    ("got", "least", "holds"),
    [
        ("2.13.0+cpu", "2.9", True),
        ("2.9", "2.9.0", True),
        ("2.8.1", "2.9", False),
        ("1.0.17", "1", True),
        ("3", "3.0.1", False),
    ],
)
def test_versions_are_compared_by_their_numbers(got, least, holds):
    assert at_least(got, least) == holds


@pytest.mark.parametrize(
    ("finding", "verdict", "word"),
    [
        (python_finding((3, 12, 1)), OK, ""),
        (python_finding((3, 9, 18)), FAULT, "Python 3.10 or later"),
        (torch_finding("2.13.0+cpu", "2.9", None, 0, False), OK, ""),
        (torch_finding("2.13.0", "2.9", "12.8", 0, False), OK, ""),
        (torch_finding("2.13.0", "2.9", "12.8", 2, True), OK, ""),
        (torch_finding("2.13.0+cpu", "2.9", None, 0, True), WARNING, "build for CUDA"),
        (torch_finding("2.13.0", "2.9", "12.8", 0, True), WARNING, "driver"),
        (torch_finding("2.4.0", "2.9", None, 0, False), FAULT, 'pip install "torch>=2.9"'),
        (threads_finding(2, 2.0, 1.0), OK, ""),
        (threads_finding(1, 0.5, 0.0), OK, ""),
        (threads_finding(64, 4.0, 0.0), WARNING, "OMP_NUM_THREADS=4"),
        (threads_finding(2, 2.0, 9.0), WARNING, "OMP_NUM_THREADS=1"),
        (package_finding("safetensors", "0.8.0", "0.5"), OK, ""),
        (package_finding("safetensors", "0.4.9", "0.5"), FAULT, "safetensors>=0.5"),
        (package_finding("safetensors", None, "0.5"), FAULT, "safetensors>=0.5"),
        (extra_finding("hub", {"datasets": "5.2.0"}, {"datasets": "4"}), OK, ""),
        (extra_finding("hub", {"datasets": None}, {"datasets": "4"}), OK, ""),
        (extra_finding("hub", {"datasets": "3.1"}, {"datasets": "4"}), WARNING, '"rankwise[hub]"'),
        (version_finding("1.0", "1.0", "1.0"), OK, ""),
        (version_finding("1.0", None, None), WARNING, "pip install ."),
        (version_finding("1.0", "1.0", None), WARNING, "PATH"),
        (version_finding("1.0", "0.9", "1.0"), FAULT, "--force-reinstall"),
        (version_finding("1.0", "1.0", "0.9"), FAULT, "first in the PATH"),
    ],
    ids=lambda value: f"{value.name}-{value.seen}" if isinstance(value, Finding) else "",
)
def test_facts_become_findings_with_their_mend(finding, verdict, word):
    assert finding.verdict is verdict
    assert word in finding.mend
    assert bool(finding.mend) == (verdict is not OK)


def test_an_extra_says_what_it_is_for_and_what_lacks():
    found = extra_finding("onnx", {"onnx": "1.18", "onnxruntime": None}, {"onnx": "1.18"})
    assert found.seen == (
        "without onnxruntime, for export to ONNX, checked in its runtime: "
        'pip install "rankwise[onnx]"'
    )


def test_a_cache_that_cannot_be_written_is_a_fault(tmp_path):
    assert cache_finding(tmp_path / "new").verdict in (OK, WARNING)
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("")
    found = cache_finding(tmp_path / "file" / "cache")
    assert found.verdict is FAULT and "RANKWISE_CACHE" in found.mend


def test_the_command_is_asked_for_its_version(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command_version("1.0") is None
    script = tmp_path / "rankwise"
    script.write_text(f"#!{sys.executable}\n")
    script.chmod(0o755)
    assert command_version("1.0") == rw.__version__
    script.write_text(f"#!{tmp_path}/no-python\n")
    assert command_version("1.0") == "unknown"
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert command_version("1.0") == "1.0"


def test_some_cores_can_be_used():
    assert 0 < usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize("seed", range(4))
def test_the_trials_pass_here(seed):
    found = trial_findings(seed)
    assert [f.name for f in found] == ["lapack", "gradients", "descent", "resume"]
    assert all(f.verdict is OK for f in found), found


def test_the_trials_leave_random_numbers_alone():
    state = torch.get_rng_state()
    trial_findings(0)
    assert torch.equal(state, torch.get_rng_state())


def gram_schmidt(X: torch.Tensor) -> torch.Tensor:
    """As in textbooks; loses orthonormality on deficient input."""
    Q = torch.zeros_like(X)
    for j in range(X.shape[1]):
        q = X[:, j] - Q @ (Q.mT @ X[:, j])
        Q[:, j] = q / q.norm()
    return Q


class StockGradients(LowRankLinear):
    """With autograd's gradients of the factors in the place of the tangent gradient."""

    def forward(self, x):
        return self.base(x) + self.scale * (x @ self.V @ self.S.mT @ self.U.mT)


def failing(X: torch.Tensor) -> torch.Tensor:
    raise torch.linalg.LinAlgError("did not converge")


def not_loading(path, *, model, optimizer):
    return {}


@pytest.mark.parametrize(
    "finding",
    [
        lapack(0, gram_schmidt),
        lapack(0, lambda X: X * float("nan")),
        lapack(0, failing),
        gradients(0, StockGradients),
        descent(0, lr=0.0),
        resume(0, not_loading),
    ],
    ids=["gram-schmidt", "nan", "failing", "stock", "no rate", "no load"],
)
def test_a_trial_finds_what_is_broken(finding):
    assert finding.verdict is FAULT
    assert finding.mend


def test_a_folder_for_temporary_files_that_is_full_is_told():
    def refusing(path, *, model, optimizer):
        raise OSError("no space left")

    found = resume(0, refusing)
    assert found.verdict is FAULT and "TMPDIR" in found.mend


def test_the_whole_installation_is_examined_in_seconds(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    start = time.perf_counter()
    found = doctor(DoctorOptions(output=tmp_path))
    assert time.perf_counter() - start < 60
    assert found.worst is not FAULT, str(found.bad)
    names = [f.name for f in found]
    assert {"python", "torch", "threads", "package safetensors", "extra finetune", "cache"} < set(
        names
    )
    assert len(names) == len(set(names))
    assert Path(tmp_path / "metrics.json").is_file()
