"""Recording a training as it goes, for `rankwise report`."""

import json
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from math import inf, nan
from pathlib import Path
from typing import Any

from torch import Tensor

from rankwise.io.atomic import write_text
from rankwise.io.json_object import read_object
from rankwise.io.path import given_path
from rankwise.optim.guard import Incidents, met
from rankwise.optim.optimizer import Optimizer
from rankwise.optim.together import replicas_of
from rankwise.report.description import described
from rankwise.report.history import (
    HISTORY,
    Line,
    append_line,
    finite,
    read_history,
    truncate_history,
    write_history,
)
from rankwise.report.machine import machine, memory_in_use, peak_memory, versions
from rankwise.report.scalars import sent
from rankwise.report.size import trained_parameters
from rankwise.report.spectra import spectra

RUN, METRICS = "run.json", "metrics.json"
PACKAGES = ("rankwise", "torch", "safetensors", "transformers")
DIGITS = 5
"""Of a singular value."""
DENSELY = 40
"""Spectra that are written one after the other; then half as often, and so on."""


class Recorder:
    """Writes what happens in any training loop into a folder, of which `rankwise report` is a page.

    `history.jsonl` gets a line a step, `run.json` what does not change: layers, rules, versions,
    machine. Call `step` once after each `optimizer.step()`, and `finish` in the end. The learning
    rate and the norm of the gradient are taken by the recorder as the optimizer's step begins.

    On several processes, after `rankwise.distributed.prepare`, only the first one writes. Have a
    recorder on each of them: the norm of gradients that FSDP2 has sharded takes all processes.

    Args:
        folder: of the run; made if it is not there.
        optimizer: the `rankwise.Optimizer` that trains.
        every: steps between two lines that tell memory, condition numbers and spectra, >= 1.
        parameters: what the history tells as the size, by default all that `optimizer` trains.
    """

    def __init__(
        self,
        folder: str | Path,
        optimizer: Optimizer,
        every: int = 25,
        *,
        parameters: Callable[[Optimizer], int] = trained_parameters,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"`optimizer` must be a rankwise.Optimizer, got {type(optimizer).__name__}"
            )
        if every < 1:
            raise ValueError(f"`every` must be at least 1, got {every}")
        self.folder = given_path(folder)
        self._optimizer = optimizer
        self._every = every
        self._parameters = parameters
        self._last: Line | None = None
        self._ranks: list[Any] | None = None
        self._skipped = 0
        self._incidents = Incidents()
        self._before: tuple[float, Tensor | float] | None = None
        self._clock = time.perf_counter()
        self._hook = optimizer.register_step_pre_hook(self._before_step)

    def resume(self, step: int) -> list[Line]:
        """Go on after `step`, >= 0: later lines of an interrupted session are dropped.

        Call it once the optimizer's state is restored. Returns the lines that stay (none on a
        process that does not write); ValueError if some of them are missing.
        """
        if not self._writes:
            self._last = {"step": step} if step else None
            return []
        lines = truncate_history(self.folder / HISTORY, step)
        for line in lines:
            self._ranks = line.get("ranks", self._ranks)
            self._skipped = line.get("skipped", self._skipped)
            if "incidents" in line:
                self._incidents = Incidents(**line["incidents"])
        if lines:
            self._last = lines[-1]
            self._write_run(finished=False)
        self._clock = time.perf_counter()
        return lines

    def step(self, loss: float | Tensor, seconds: float | None = None) -> Line:
        """Write the line of a step that was taken; returns it.

        Args:
            loss: of the step; a tensor (one number) is copied from its device.
            seconds: that the step took, by default those since the step before.
        """
        now = time.perf_counter()
        if self._last is None:
            self._begin()
        lr, norm = self._before or (self._optimizer.param_groups[-1]["lr"], nan)
        self._before = None
        ranks = [layer.ranks for _, layer in self._optimizer.layers]
        several = [rank for own in ranks for rank in own]
        line: Line = {
            "step": self._last["step"] + 1 if self._last else 1,
            "loss": float(loss.detach() if isinstance(loss, Tensor) else loss),
            "lr": float(lr),
            "mean_rank": sum(several) / max(1, len(several)),
            "parameters": self._parameters(self._optimizer),
            "gradient_norm": float(norm),
            "seconds": now - self._clock if seconds is None else seconds,
        }
        told = [own[0] if len(own) == 1 else list(own) for own in ranks]
        if told != self._ranks:
            line["ranks"] = self._ranks = told
        if self._optimizer.skipped != self._skipped:
            line["skipped"] = self._skipped = self._optimizer.skipped
        if self._optimizer.incidents != self._incidents:
            self._incidents = self._optimizer.incidents
            line["incidents"] = met(self._incidents)
        line |= sent(self._optimizer)
        step = line["step"]
        if step == 1 or step % self._every == 0:
            line |= self._details(with_spectra=_has_spectra(step, self._every))
        if self._writes:
            append_line(self.folder / HISTORY, line)
        self._last = line
        self._clock = time.perf_counter()
        return line

    def close(self) -> Line | None:
        """End the recording: the last line gets its spectra; returns it, None if there is none."""
        self._hook.remove()
        if not self._writes:
            return self._last
        if self._last is not None and not self._is_complete(self._last):
            lines = read_history(self.folder / HISTORY)
            lines[-1] = self._last = self._last | self._details(with_spectra=True)
            write_history(self.folder / HISTORY, lines)
        if self._last is not None:
            self._write_run(finished=True)
        return self._last

    def finish(self, metrics: Mapping[str, Any] | None = None) -> None:
        """End a run that is complete, with results (JSON) of your own such as an accuracy."""
        self.close()
        if self._writes:
            text = json.dumps(dict(metrics or {}), indent=2) + "\n"
            write_text(self.folder / METRICS, text)

    @property
    def _writes(self) -> bool:
        replicas = replicas_of(self._optimizer.layers)
        return replicas is None or replicas.is_first

    def _begin(self) -> None:
        if not self._writes:
            return
        for name in (HISTORY, METRICS):
            file = self.folder / name
            if file.exists() and file.stat().st_size:
                raise ValueError(
                    f"{file} is of an earlier run: call `resume(step)` to go on with it, or record "
                    "into another folder"
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_run(finished=False)

    def _before_step(self, optimizer: Any, arguments: Any, named: Any) -> Any:
        """What is gone after the step: its rate, and gradients of the shapes that they have.

        A closure that makes the gradients is followed by the measurement, the first time.
        """
        self._before = None
        itself, *given = arguments
        closure = given[0] if given else named.get("closure")
        if closure is None:
            self._measure()
            return None

        def measured() -> Any:
            result = closure()
            if self._before is None:
                self._measure()
            return result

        return (itself, measured), {}

    def _measure(self) -> None:
        norm = self._optimizer.gradient_norm()
        self._before = float(self._optimizer.param_groups[-1]["lr"]), norm

    def _details(self, *, with_spectra: bool) -> Line:
        found = spectra(self._optimizer.layers)
        names = [name for name, _ in self._optimizer.layers]
        conditions = map(_condition, found)
        line: Line = {"memory": memory_in_use(), "peak_memory": peak_memory()}
        if found:
            line["condition"] = finite(dict(zip(names, conditions, strict=True)))
        if found and with_spectra:
            line["spectra"] = [[float(f"{s:.{DIGITS}g}") for s in sigma] for sigma in found]
        return line

    def _is_complete(self, line: Line) -> bool:
        """Whether it has all details, which would come out otherwise a second time."""
        return "spectra" in line if self._optimizer.layers else "memory" in line

    def _write_run(self, *, finished: bool) -> None:
        run = {
            "started": self._started(),
            "finished": finished,
            "every": self._every,
            **described(self._optimizer),
            "versions": versions(PACKAGES),
            "machine": machine(),
        }
        write_text(self.folder / RUN, json.dumps(run, indent=1) + "\n")

    def _started(self) -> str:
        file = self.folder / RUN
        if self._last is not None and file.exists():
            started = read_object(file).get("started")
            if isinstance(started, str):
                return started
        return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _condition(sigma: list[float]) -> float:
    if sigma[0] == 0:
        return 1.0
    return sigma[0] / sigma[-1] if sigma[-1] > 0 else inf


def _has_spectra(step: int, every: int) -> bool:
    """The first `DENSELY` times, then every second time, and half as often at each doubling."""
    count, rest = divmod(step, every)
    return step == 1 or (rest == 0 and count % 2 ** (count // DENSELY).bit_length() == 0)
