"""What is installed, and whether it fits together: small checks, from facts to findings."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

import torch

from rankwise.check.finding import Finding, fault, fine, warning

LEAST_PYTHON = (3, 10)
LEAST_SPACE = 1e9
BUSY = 1.5
"""Runnable processes for each core beyond which timings are not one's own."""
ENABLES = {
    "finetune": "the command line, fine-tuning of encoders, pictures",
    "language": "fine-tuning of the built-in language model",
    "quantize": "frozen layers of 4 bits",
    "loops": "Trainer, SFTTrainer, Lightning, accelerate, TensorBoard",
    "hub": "data sets of the Hugging Face hub",
    "onnx": "export to ONNX, checked in its runtime",
    "bench": "the benchmarks against PEFT",
}
NOT_FOR_USERS = {"dev", "docs", "test"}


class Requirement(NamedTuple):
    """One package that the metadata asks for, and its least version."""

    name: str
    least: str
    extra: str
    """That asks for it; "" for what is always needed."""


def parsed(line: str) -> Requirement:
    """A line of `Requires-Dist`, as `name>=1.2; extra == 'x'`; other conditions are left out."""
    name = re.match(r"[\w.-]+", line)
    least = re.search(r">=\s*([\w.]+)", line)
    extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
    assert name is not None
    return Requirement(
        name.group(), least.group(1) if least else "0", extra.group(1) if extra else ""
    )


def requirements(package: str = "rankwise") -> list[Requirement]:
    """Of the installed package; none where it is used from its sources."""
    try:
        lines = requires(package) or []
    except PackageNotFoundError:
        return []
    return [parsed(line) for line in lines]


def installed(name: str) -> str | None:
    """Version of a package, None where it is missing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def at_least(got: str, least: str) -> bool:
    """Whether a version is that or later, by its numbers."""
    a, b = ([int(n) for n in re.findall(r"\d+", v.partition("+")[0])] for v in (got, least))
    width = max(len(a), len(b))
    return a + [0] * (width - len(a)) >= b + [0] * (width - len(b))


def python_finding(got: tuple[int, int, int]) -> Finding:
    name, seen = "python", ".".join(map(str, got))
    if got[:2] < LEAST_PYTHON:
        least = ".".join(map(str, LEAST_PYTHON))
        return fault(name, seen, f"install Python {least} or later")
    return fine(name, seen)


def torch_finding(got: str, least: str, cuda: str | None, devices: int, driver: bool) -> Finding:
    """Of torch's version and build.

    Args:
        got, least: versions.
        cuda: that the build is for, None for a build without.
        devices: that torch sees.
        driver: whether this machine has NVIDIA's.
    """
    build = f"CUDA {cuda}" if cuda else "CPU"
    seen = f"{got}, build for {build}, {devices} GPU"
    if not at_least(got, least):
        return fault("torch", seen, f'pip install "torch>={least}"')
    if driver and cuda is None:
        return warning(
            "torch",
            f"{seen}, though this machine has a GPU",
            "install torch's build for CUDA, see pytorch.org/get-started",
        )
    if driver and devices == 0:
        return warning(
            "torch",
            f"{seen}, though this machine has a GPU",
            f"update the driver to one for CUDA {cuda}, or look at CUDA_VISIBLE_DEVICES",
        )
    return fine("torch", seen)


def threads_finding(threads: int, cores: float, load: float) -> Finding:
    """Of torch's threads.

    Args:
        threads: of torch.
        cores: that this process may use.
        load: runnable processes on the machine, mean of a minute.
    """
    name, seen = "threads", f"{threads} of torch, {cores:g} cores, load {load:.1f}"
    few = max(1, int(cores))
    if threads > max(1.0, cores):
        return warning(
            name,
            f"{seen}: more threads than cores, they wait for each other",
            f"OMP_NUM_THREADS={few}, or --threads {few}",
        )
    if load > BUSY * cores + 1:
        return warning(
            name,
            f"{seen}: the machine is busy",
            "timings mean little now; fewer threads wait less: OMP_NUM_THREADS=1",
        )
    return fine(name, seen)


def package_finding(package: str, got: str | None, least: str) -> Finding:
    """Of a package that is always needed."""
    name = f"package {package}"
    if got is None or not at_least(got, least):
        seen = "is missing" if got is None else f"{got}, needed is {least}"
        return fault(name, seen, f'pip install "{package}>={least}"')
    return fine(name, got)


def extra_finding(extra: str, found: dict[str, str | None], least: dict[str, str]) -> Finding:
    """Of one optional set of packages, by their versions (None where missing).

    Most work needs one of these sets only, so what is missing is told and no flaw; what is there
    and too old is one.
    """
    name, install = f"extra {extra}", f'pip install "rankwise[{extra}]"'
    purpose = f", for {ENABLES[extra]}" if extra in ENABLES else ""
    old = [
        f"{n} {v} is older than {least[n]}"
        for n, v in found.items()
        if v is not None and not at_least(v, least[n])
    ]
    if old:
        return warning(name, f"{'; '.join(old)}{purpose}", install)
    lacking = [n for n, v in found.items() if v is None]
    if lacking:
        return fine(name, f"without {', '.join(lacking)}{purpose}: {install}")
    there = ", ".join(f"{n} {v}" for n, v in found.items())
    return fine(name, f"{there}{purpose}")


def version_finding(imported: str, recorded: str | None, command: str | None) -> Finding:
    """Of rankwise itself.

    Args:
        imported: version of the package that runs.
        recorded: version that the package index of this Python knows.
        command: version behind the command `rankwise`, None where there is no command.
    """
    name, seen = "version", f"rankwise {imported}"
    if recorded is None:
        return warning(
            name, f"{seen}, from its sources: not installed", "`pip install .` in the sources"
        )
    if recorded != imported:
        return fault(
            name,
            f"{seen} is imported, {recorded} is installed",
            "`pip install --force-reinstall rankwise`, and run it outside of other sources",
        )
    if command is None:
        return warning(
            name,
            f"{seen}, without a command `rankwise` on the PATH",
            f"add {Path(sys.executable).parent} to the PATH, or `python -m rankwise.cli.main`",
        )
    if command != imported:
        return fault(
            name,
            f"{seen} is imported, the command `rankwise` is {command}",
            f"put {Path(sys.executable).parent} first in the PATH",
        )
    return fine(name, f"{seen}, as package and command")


def cache_finding(folder: Path) -> Finding:
    """Whether the folder of downloads can be written, and holds what is to come."""
    name = "cache"
    mend = "name another folder in RANKWISE_CACHE"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".doctor-{os.getpid()}"
        probe.write_bytes(b"written")
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return fault(name, f"{folder} cannot be written: {error}", mend)
    seen = f"{folder}, {free / 1e9:,.1f} GB free"
    if free < LEAST_SPACE:
        return warning(name, seen, f"make room, or {mend}")
    return fine(name, seen)


def usable_cores() -> float:
    """Cores that this process may use: of the machine, its affinity, its control group."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = float(len(affinity(0)) if affinity else os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return cores if quota == "max" else min(cores, int(quota) / int(period))
    except (OSError, ValueError):
        return cores


def load_average() -> float:
    """Of the last minute; 0 where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def has_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def command_version(own: str) -> str | None:
    """Version behind the command `rankwise`, `own` where it is of this very Python."""
    if Path(sys.argv[0]).stem == "rankwise":
        return own
    found = shutil.which("rankwise")
    if found is None:
        return None
    if Path(found).parent == Path(sys.executable).parent:
        return own
    try:
        with open(found, "rb") as script:
            python = script.readline().decode("utf-8", "replace").removeprefix("#!").strip()
        code = "from importlib.metadata import version; print(version('rankwise'))"
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def installation_findings(folder: Path, imported: str) -> list[Finding]:
    """Everything about what is installed.

    Args:
        folder: of the cache.
        imported: version of the package that runs.
    """
    needed = requirements()
    least = {r.name: r.least for r in needed}
    found = [
        python_finding((sys.version_info.major, sys.version_info.minor, sys.version_info.micro)),
        torch_finding(
            str(torch.__version__),
            least.get("torch", "0"),
            torch.version.cuda,
            torch.cuda.device_count(),
            has_driver(),
        ),
        threads_finding(torch.get_num_threads(), usable_cores(), load_average()),
        version_finding(imported, installed("rankwise"), command_version(imported)),
    ]
    found += [
        package_finding(r.name, installed(r.name), r.least)
        for r in needed
        if not r.extra and r.name != "torch"
    ]
    extras: dict[str, dict[str, str | None]] = {}
    for r in needed:
        if r.extra and r.extra not in NOT_FOR_USERS and r.name != "rankwise":
            extras.setdefault(r.extra, {})[r.name] = installed(r.name)
    found += [extra_finding(extra, packages, least) for extra, packages in extras.items()]
    return [*found, cache_finding(folder)]
