"""The tests under other interpreters and other versions of what rankwise stands on.

Each row gets a virtual environment of its own, made by pip as a user would; the tests run in it,
one process each, and are counted. Plain standard library, for it runs where nothing is installed.
Ends with 1 where a test failed. A row whose interpreter or release is not to be had is told, and
fails nothing. Rows may be run one by one into a folder: its table is of all that it holds.
"""

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
CORE = tuple(f"tests/{part}" for part in "numerics nn optim integrators io surgery".split())
WITH_TRANSFORMERS = ("tests/recipes/test_finetune.py", "tests/integrations")
EXTRAS = "finetune,loops,federated,onnx,quantize,bench"
TOOLS = ("pytest", "hypothesis")
SHOWN = frozenset(
    "torch numpy safetensors transformers peft accelerate lightning trl datasets flwr onnx "
    "onnxruntime bitsandbytes".split()
)


class Row(NamedTuple):
    """What is installed: the library alone, which needs no numpy, or transformers and all loops.

    `lowest`: in the oldest releases that the extras allow; else pip takes the newest.
    """

    python: str
    torch: str
    transformers: str | None = None
    lowest: bool = False

    @property
    def name(self) -> str:
        ending = "lowest" if self.lowest else None
        parts = "py" + self.python, self.torch, self.transformers, ending
        return "-".join(filter(None, parts))

    @property
    def packages(self) -> list[str]:
        if self.transformers is None:
            return ["-e", str(ROOT)]
        bounds = lowest_releases() if self.lowest else []
        return ["-e", f"{ROOT}[{EXTRAS}]", f"transformers=={self.transformers}", *bounds]

    @property
    def tests(self) -> tuple[str, ...]:
        return CORE if self.transformers is None else (*CORE, *WITH_TRANSFORMERS)


ROWS = (
    Row("3.10", "2.9.0"),
    Row("3.10", "2.9.0", "5.20.2", lowest=True),
    Row("3.11", "2.13.0"),
    Row("3.11", "2.13.0", "5.21.1"),
    Row("3.11", "2.14.1", "5.24.0"),
    Row("3.12", "2.13.0", "5.23.0"),
    Row("3.13", "2.13.0", "5.21.1"),
)


def lowest_releases() -> list[str]:
    """The last patch of each lowest minor release that the extras ask for."""
    wanted = EXTRAS.replace(",", "|")
    declared = (ROOT / "pyproject.toml").read_text()
    extras = re.findall(rf"^(?:{wanted}) = \[(.*?)\]$", declared, re.M | re.S)
    bounds = re.findall(r'"([a-z]+)>=(\d+\.\d+)', " ".join(extras))
    return sorted({f"{name}=={minor}.*" for name, minor in bounds})


class Failed(Exception):
    """A row that cannot be made, and why."""


def interpreter(version: str) -> str:
    """`python3.x` on the path, or the newest of that minor release that pyenv has."""
    found = shutil.which(f"python{version}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    newest = sorted(pyenv.glob(f"{version}.*/bin/python"), key=lambda p: _release(p.parents[1]))
    for candidate in [*map(str, newest[::-1]), *filter(None, [found])]:
        if subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    raise Failed(f"no Python {version}")


def _release(folder: Path) -> list[int]:
    return [int(part) for part in folder.name.split(".") if part.isdigit()]


def made(row: Row, folder: Path) -> Path:
    """The interpreter of the row's environment. torch goes first, so that nothing else picks it."""
    python = folder / "bin" / "python"
    if not python.exists():
        _do("venv", interpreter(row.python), "-m", "venv", str(folder))
    pip = (str(python), "-m", "pip", "install", "--quiet")
    _do(f"torch {row.torch}", *pip, f"torch=={row.torch}")
    _do("rankwise", *pip, *row.packages, *TOOLS)
    return python


def _do(what: str, *command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=_environment())
    if done.returncode:
        last = (done.stderr.strip() or "no word").splitlines()[-1]
        raise Failed(f"{what} did not install: {last}")


def _environment() -> dict[str, str]:
    own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return own | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def tested(python: Path, tests: tuple[str, ...], report: Path) -> dict[str, Any]:
    """How many tests passed, failed and were skipped, which failed, and why others were skipped."""
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    log = report.with_suffix(".log")
    with log.open("w") as output:
        subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT, env=_environment(),
                       stdout=output, stderr=subprocess.STDOUT)  # fmt: skip
    if not report.exists():
        raise Failed(f"pytest did not run, see {log}")
    return counted(report)


def counted(report: Path) -> dict[str, Any]:
    """Of pytest's XML. What is expected to fail and does is among the skipped, with its reason."""
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    of = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    failed = of["failures"] + of["errors"]
    failures, reasons = [], Counter[str]()
    for case in suite.iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failures.append(f"{case.get('classname')}::{case.get('name')}")
        if (skipped := case.find("skipped")) is not None:
            reasons[_reason(skipped)] += 1
    return {"passed": of["tests"] - failed - of["skipped"], "failed": failed,
            "skipped": of["skipped"], "failures": failures, "reasons": dict(reasons)}  # fmt: skip


def _reason(skipped: ElementTree.Element) -> str:
    message = skipped.get("message", "")
    if message != "collection skipped":
        return message
    # Of a whole file the reason stands in the text, after path and line.
    reason: str = ast.literal_eval(skipped.text or "")[2]
    return reason.replace("Skipped:", "a file,", 1)


def installed(python: Path) -> dict[str, str]:
    listed = subprocess.run([str(python), "-m", "pip", "list", "--format=json"],
                            capture_output=True, text=True, check=True).stdout  # fmt: skip
    return {p["name"]: p["version"] for p in json.loads(listed) if p["name"] in SHOWN}


def outcome(row: Row, output: Path, keep: bool) -> dict[str, Any]:
    """What became of a row; its environment is gone afterwards unless `keep`."""
    folder = output / row.name
    told: dict[str, Any] = row._asdict()
    try:
        python = made(row, folder)
        told |= {"installed": installed(python)}
        told |= tested(python, row.tests, output / f"{row.name}.xml")
    except Failed as reason:
        told |= {"reason": str(reason)}
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return told


def lines(results: list[dict[str, Any]]) -> Iterator[str]:
    yield "| Python | torch | transformers | other extras | numpy | passed | failed | skipped |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for told in results:
        found = told.get("installed", {})
        extras = "lowest" if told["lowest"] else "newest"
        cells = [told["python"], told["torch"]]
        cells += [told["transformers"], extras] if told["transformers"] else ["-", "-"]
        cells += [found.get("numpy", "-")]
        if "reason" in told:
            cells += [told["reason"], "", ""]
        else:
            cells += [str(told[key]) for key in ("passed", "failed", "skipped")]
        yield "| " + " | ".join(cells) + " |"


def notes(results: list[dict[str, Any]]) -> Iterator[str]:
    """Which tests failed, and why others were skipped."""
    for told in results:
        name = Row(*(told[field] for field in Row._fields)).name
        yield from (f"- {name}: failed {test}" for test in told.get("failures", []))
        for reason, count in told.get("reasons", {}).items():
            yield f"- {name}: {count} skipped, {reason}"


def kept(output: Path) -> list[dict[str, Any]]:
    """What became of the rows that were run into this folder, now or before."""
    files = {row: output / f"{row.name}.json" for row in ROWS}
    return [row._asdict() | json.loads(f.read_text()) for row, f in files.items() if f.exists()]


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the tests under other versions.")
    parser.add_argument("--output", type=Path, default=Path("runs/matrix"))
    parser.add_argument("--only", default="", help="a row, or those whose names begin so: py3.13")
    parser.add_argument("--keep", action="store_true", help="leave the environments, ~5 GB each")
    options = parser.parse_args()
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    rows = [row for row in ROWS if row.name == options.only] or [
        row for row in ROWS if row.name.startswith(options.only)
    ]
    if not rows:
        parser.error(f"--only {options.only}: no row; there are {', '.join(r.name for r in ROWS)}")
    failed = 0
    for row in rows:
        told = outcome(row, output, options.keep)
        (output / f"{row.name}.json").write_text(json.dumps(told, indent=1))
        print(list(lines([told]))[-1], flush=True)
        failed += told.get("failed", 0)
    results = kept(output)
    table = "\n".join([*lines(results), "", *notes(results)]) + "\n"
    (output / "matrix.md").write_text(table)
    print("\n" + table)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
