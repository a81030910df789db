"""One loader, one damaged content after the other: what is counted, and what is kept of it."""

import hashlib
import resource
import signal
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from loader import Loader

EXPECTED = (ValueError, TypeError, OSError)
SLOW = 1.0
"""Seconds of processor time beyond which an input is a finding."""
ENDLESS = 60.0
"""Seconds of processor time after which it ends the process."""
KEPT = 20
"""Findings of one loader that are written."""
TRIED = "tried"
"""In the working folder, the input that is being read."""


class Trial:
    """Counts of one loader.

    Args:
        folder: to work in, in memory if possible.
        output: below it, findings go to `crashes/<loader>`.
    """

    def __init__(self, loader: Loader, folder: Path, output: Path) -> None:
        self.loader, self._folder, self._output = loader, folder, output
        self.inputs = self.refused = self.unnamed = self.slow = 0
        self.found: dict[str, str] = {}
        self.slowest = 0.0
        self._start = 0

    def one(self, content: bytes) -> None:
        (self._folder / TRIED).write_bytes(content)
        with tempfile.TemporaryDirectory(dir=self._folder) as place:
            # By processor time: the clock goes on while a machine is paused.
            signal.setitimer(signal.ITIMER_PROF, ENDLESS)
            start = time.process_time()
            try:
                self.loader.read(content, Path(place))
            except EXPECTED as error:
                self.refused += 1
                if not self.loader.explained(str(error), place):
                    self.unnamed += 1
                    self._keep(content, error, "unnamed")
            except Exception as error:
                self._keep(content, error, "crash")
            seconds = time.process_time() - start
            signal.setitimer(signal.ITIMER_PROF, 0.0)
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
        if key in self.found or len(self.found) >= KEPT:
            return
        self.found[key] = str(error)[:200]
        kept = keep(content, self.loader.name, self._output)
        text = key + "\n" + "".join(traceback.format_exception(error))[-3000:]
        kept.with_suffix(".txt").write_text(text)

    def told(self) -> dict[str, Any]:
        growth = (_peak() - self._start) / 2**20 if self._start else 0.0
        return {
            "inputs": self.inputs,
            "refused": self.refused,
            "crashes": sum(not key.startswith(("unnamed", "slow")) for key in self.found),
            "unnamed": self.unnamed,
            "slow": self.slow,
            "slowest": self.slowest,
            "memory_growth_mib": growth,
            "found": self.found,
        }


def keep(content: bytes, loader: str, output: Path) -> Path:
    """Where a content is kept that is a finding."""
    path = output / "crashes" / loader / hashlib.sha256(content).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
