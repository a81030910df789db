"""Damaged files for all that reads files: what is refused, what crashes, how long and how much.

Guided by coverage where atheris is installed, which `make fuzz` sees to; without it, damage is
drawn at random. A crash is written to `crashes/<loader>/` and is to become a test.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
EXPECTED = (ValueError, TypeError, OSError)
SLOW = 1.0
"""Seconds of processor time beyond which an input is a finding."""
SEEDS = HERE / "corpus"
KEPT = 20
"""Crashes of one loader that are written."""


class Trial:
    """Counts of one loader."""

    def __init__(self, loader: Any, folder: Path, output: Path) -> None:
        self.loader, self.output = loader, output
        self._folder = folder
        self.inputs = self.refused = self.unnamed = self.slow = 0
        self.crashes: dict[str, str] = {}
        self.slowest = 0.0
        self._start = 0

    def one(self, content: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=self._folder) as place:
            start = time.process_time()
            try:
                self.loader.read(content, Path(place))
            except EXPECTED as error:
                self.refused += 1
                if self.loader.named and not _names_a_file(str(error), place):
                    self.unnamed += 1
                    self._keep(content, error, "unnamed")
            except Exception as error:
                self._keep(content, error, "crash")
            seconds = time.process_time() - start
        self.inputs += 1
        self.slowest = max(self.slowest, seconds)
        if seconds > SLOW:
            self.slow += 1
            self._keep(content, TimeoutError(f"{seconds:.1f} s"), "slow")
        if self.inputs == 100:
            self._start = _peak()

    def _keep(self, content: bytes, error: BaseException, kind: str) -> None:
        """One of each place in the code."""
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if "rankwise" in f.filename] or frames
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
        key = f"{kind} {type(error).__name__} {where}"
        if key in self.crashes or len(self.crashes) >= KEPT:
            return
        self.crashes[key] = f"{str(error)[:200]}"
        target = self.output / "crashes" / self.loader.name
        target.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(content).hexdigest()[:12]
        (target / name).write_bytes(content)
        (target / f"{name}.txt").write_text(
            key + "\n" + "".join(traceback.format_exception(error))[-3000:]
        )

    def told(self) -> dict[str, Any]:
        growth = (_peak() - self._start) / 2**20 if self._start else 0.0
        return {
            "inputs": self.inputs,
            "refused": self.refused,
            "crashes": sum(not key.startswith(("unnamed", "slow")) for key in self.crashes),
            "unnamed": self.unnamed,
            "slow": self.slow,
            "slowest": self.slowest,
            "memory_growth_mib": growth,
            "found": self.crashes,
        }


def _names_a_file(message: str, place: str) -> bool:
    names = (place, "a.idx", "model.safetensors", "thin layers of")
    return any(name in message for name in names)


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    options = _options()
    if len(options.loaders) == 1 and options.inside:
        return _inside(options)
    found: dict[str, Any] = {}
    for name in options.loaders or _names():
        command = [sys.executable, __file__, "--inside", "--output", str(options.output)]
        command += ["--seed", str(options.seed), "--inputs", str(options.inputs), name]
        subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
        told = options.output / f"{name}.json"
        found[name] = json.loads(told.read_text()) if told.exists() else {"died": True}
        _print(name, found[name])
    metrics = {"loaders": found, "seed": options.seed, "inputs": options.inputs}
    (options.output / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    bad = [n for n, f in found.items() if f.get("died") or f["found"]]
    print(f"written: {options.output / 'metrics.json'}; findings in: {', '.join(bad) or 'none'}")
    sys.exit(1 if bad else 0)


def _print(name: str, f: dict[str, Any]) -> None:
    if f.get("died"):
        print(f"{name:15} the process died")
        return
    print(
        f"{name:15} {f['inputs']:>8,} inputs {f['refused']:>8,} refused {f['crashes']:>3} crashes "
        f"{f['unnamed']:>5} unnamed {f['slowest']:>7.3f} s slowest "
        f"{f['memory_growth_mib']:>7.1f} MiB growth",
        flush=True,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loaders", nargs="*", help="by name [all]")
    parser.add_argument("--output", type=Path, default=Path("runs/fuzz"), help="folder of results")
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    parser.add_argument("--inputs", type=int, default=100_000, help="for each loader")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.output = options.output.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    return options


def _names() -> list[str]:
    from loaders import loaders

    return list(loaders())


def _inside(options: argparse.Namespace) -> None:
    """One loader in a process of its own: atheris ends it, and memory is counted by process."""
    try:
        import atheris
    except ImportError:
        atheris = None
    if atheris is None:
        from loaders import loaders
    else:
        with atheris.instrument_imports(include=["rankwise"]):
            from loaders import loaders
    import torch

    torch.set_num_threads(1)
    loader = loaders()[options.loaders[0]]
    shared = Path("/dev/shm")
    scratch = tempfile.mkdtemp(dir=shared if shared.is_dir() else None, prefix="fuzz-")
    trial = Trial(loader, Path(scratch), options.output)
    seeds = options.output / "seeds" / loader.name
    seeds.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        sound = loader.seeds(Path(place))
    for i, content in enumerate(sound):
        (seeds / str(i)).write_bytes(content)
    told = options.output / f"{loader.name}.json"
    told.unlink(missing_ok=True)

    def end() -> None:
        told.write_text(json.dumps(trial.told(), indent=1) + "\n")

    if atheris is None:
        draw = random.Random(options.seed)
        for _ in range(options.inputs):
            trial.one(loader.damaged(draw.choice(sound), draw))
        end()
        return

    def one(content: bytes) -> None:
        trial.one(content)
        if trial.inputs >= options.inputs:
            end()
            os._exit(0)

    def damaged(content: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        way = draw.random()
        if way < 0.1:
            return atheris.Mutate(content, most)
        # What grows is damaged already, and most of it is refused early.
        start = draw.choice(sound) if way < 0.6 else content
        return loader.damaged(start, draw)[:most]

    flags = [f"-seed={options.seed + 1}", "-max_len=200000", "-rss_limit_mb=8192", "-timeout=60"]
    atheris.Setup([sys.argv[0], *flags, str(seeds)], one, custom_mutator=damaged)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
