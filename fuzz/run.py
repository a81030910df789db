"""Damaged files for all that reads files: what is refused, what crashes, how long and how much.

Guided by coverage where atheris is installed, which `make fuzz` sees to; without it, damage is
drawn at random. A crash is written to `crashes/<loader>/` and is to become a test.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from loaders import loaders
from trial import TRIED, keep

INSIDE = Path(__file__).with_name("inside.py")
LAST_LINES = 40
"""Kept of what a process has printed that died."""
REASONS = {
    "exit status 3": "no damage could be made",
    "exit status 70": "out of time",
    "exit status 71": "out of memory",
    "exit status 72": "interrupted",
    "killed by SIGPROF": "out of processor time",
}
"""Of ways to end that `inside.py` and libFuzzer choose."""


def main() -> None:
    options = _options()
    found = {name: _tried(name, options) for name in options.loaders or loaders()}
    metrics = {"loaders": found, "seed": options.seed, "inputs": options.inputs}
    (options.output / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    bad = [n for n, f in found.items() if "died" in f or f["found"]]
    print(f"written: {options.output / 'metrics.json'}; findings in: {', '.join(bad) or 'none'}")
    sys.exit(1 if bad else 0)


def _tried(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the process of a loader tells, or how it died."""
    told, log = options.output / f"{name}.json", options.output / f"{name}.log"
    told.unlink(missing_ok=True)
    shared = Path("/dev/shm")
    place = tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None, prefix="fuzz-")
    with place as folder, log.open("wb") as printed:
        command = [sys.executable, INSIDE, name, options.output, folder]
        command += [options.seed, options.inputs]
        # Of a file no buffer is lost when a process is killed, as of a pipe.
        ended = subprocess.run(list(map(str, command)), stdout=printed, stderr=printed, check=False)
        tried = Path(folder) / TRIED
        last = tried.read_bytes() if tried.exists() else None
    if told.exists():
        log.unlink()
        result: dict[str, Any] = json.loads(told.read_text())
    else:
        log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[-LAST_LINES:]))
        result = {"died": how_it_ended(ended.returncode), "printed": str(log)}
        if last is not None:
            result["tried"] = str(keep(last, name, options.output))
    print(_line(name, result), flush=True)
    return result


def how_it_ended(code: int) -> str:
    """In words what `subprocess` says of the end of a process."""
    end = f"exit status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
    return f"{end} ({REASONS[end]})" if end in REASONS else end


def _line(name: str, f: dict[str, Any]) -> str:
    if "died" in f:
        tried = f"tried last: {f['tried']}" if "tried" in f else "before the first input"
        return f"{name:15} the process died: {f['died']}; {tried}; printed last: {f['printed']}"
    return (
        f"{name:15} {f['inputs']:>8,} inputs {f['refused']:>8,} refused {f['crashes']:>3} crashes "
        f"{f['unnamed']:>5} unnamed {f['slowest']:>7.3f} s slowest "
        f"{f['memory_growth_mib']:>7.1f} MiB growth"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loaders", nargs="*", help="by name [all]")
    parser.add_argument("--output", type=Path, default=Path("runs/fuzz"), help="folder of results")
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    parser.add_argument("--inputs", type=int, default=100_000, help="for each loader")
    options = parser.parse_args()
    options.output = options.output.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    main()
