"""The training loop of a job: steps, history, checkpoints, and stopping between two steps."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from rankwise.io.atomic import flush
from rankwise.io.checkpoints import file_of, steps_in
from rankwise.io.json_object import short
from rankwise.io.training import load_training, save_training
from rankwise.optim.layers import numbers_held
from rankwise.optim.optimizer import Optimizer
from rankwise.recipes.history_sum import HistorySum, sum_up_to
from rankwise.report.history import HISTORY, Line
from rankwise.report.recorder import RUN, Recorder

CHECKPOINTS = "checkpoints"
FORMER = "checkpoint.safetensors"
"""The one checkpoint of an earlier rankwise."""
RECORDS = (CHECKPOINTS, FORMER, HISTORY, RUN)
"""What `train` leaves."""


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""

    def __init__(self, step: int, folder: Path) -> None:
        self.step = step
        super().__init__(f"stopped after step {step}; go on with --resume --output {folder}")


def adapter_parameters(optimizer: Optimizer) -> int:
    """Numbers that the adapters hold."""
    return numbers_held(optimizer.layers)


@dataclass
class Run:
    """What a loop steps, and where it writes."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: LambdaLR
    folder: Path
    steps: int
    save_every: int
    keep: int
    """Newest checkpoints that stay."""
    identity: dict[str, Any]
    """What must be the same when the run goes on: of the data, for example a fingerprint."""
    part: str = ""
    """Folder inside `folder` with the files of this network, where a job trains several."""
    parameters: Callable[[Optimizer], int] = adapter_parameters
    """The size that the history tells."""
    enter: Callable[[nn.Module], object] = nn.Module.train
    """Puts the model into the mode in which it trains."""

    @property
    def files(self) -> Path:
        return self.folder / self.part


def checkpoint_in(files: Path) -> Path | None:
    """What the run with these files goes on from; None before its first checkpoint."""
    if steps_in(files / CHECKPOINTS):
        return files / CHECKPOINTS
    return files / FORMER if (files / FORMER).exists() else None


def checkpoints_in(files: Path) -> list[Path]:
    """The newest first; of an earlier rankwise it is one."""
    folder = files / CHECKPOINTS
    new = [file_of(folder, step) for step in steps_in(folder)]
    return new + [file for file in [files / FORMER] if file.exists()]


def warm_up_and_decay(steps: int) -> Callable[[int], float]:
    """Linear warm-up over a tenth of the steps, then linear decay to zero; factors of the rate."""
    warm_up = max(1, steps // 10)
    return lambda step: min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))


def train(
    run: Run, loss_at: Callable[[int], Tensor], report: Callable[[Line], None], *, resume: bool
) -> list[Line]:
    """Take the steps that are left; returns the history of all.

    Raises Interrupted after SIGINT or SIGTERM, between two steps, with the state saved.
    """
    recorder = Recorder(run.files, run.optimizer, parameters=run.parameters)
    history, told = _restored(run, recorder) if resume else ([], HistorySum())
    for line in history:
        report(line)
    run.enter(run.model)
    steps = range(len(history) + 1, run.steps + 1)
    with asked_to_stop() as asked:
        for step in steps:
            line = _step(run, loss_at, step, recorder)
            if step == run.steps:
                line = recorder.close() or line
            history.append(line)
            told.add(line)
            report(line)
            if step % run.save_every == 0 or step == run.steps or asked():
                _save(run, step, str(told))
            if asked():
                raise Interrupted(step, run.folder)
    if not steps:
        recorder.close()
    return history


def _step(run: Run, loss_at: Callable[[int], Tensor], step: int, recorder: Recorder) -> Line:
    start = time.perf_counter()
    loss = loss_at(step - 1)
    run.optimizer.zero_grad()
    loss.backward()
    run.optimizer.step()
    run.scheduler.step()
    return recorder.step(loss.detach(), time.perf_counter() - start)


def _save(run: Run, step: int, history: str) -> None:
    # A checkpoint that is there after a power failure needs the lines of its steps.
    flush(run.files / HISTORY)
    save_training(
        run.files / CHECKPOINTS,
        model=run.model,
        optimizer=run.optimizer,
        scheduler=run.scheduler,
        progress={"step": step, "identity": run.identity, "history": history},
        keep=run.keep,
    )
    (run.files / FORMER).unlink(missing_ok=True)


def _restored(run: Run, recorder: Recorder) -> tuple[list[Line], HistorySum]:
    """The history up to where the run goes on, and its sum.

    Model, optimizer and schedule are as they were.
    """
    path = checkpoint_in(run.files)
    if path is None:
        raise ValueError(
            f"{run.files} holds no checkpoint: the run stopped before its first. "
            "Start it anew with --overwrite"
        )
    random_state = torch.get_rng_state()
    progress = load_training(
        path, model=run.model, optimizer=run.optimizer, scheduler=run.scheduler
    )
    identity, step = progress.get("identity"), progress.get("step")
    if identity != run.identity:
        torch.set_rng_state(random_state)
        known = identity if isinstance(identity, dict) else {}
        changed = [k for k, v in run.identity.items() if known.get(k) != v]
        raise ValueError(f"{path}: the run was started with other {' and '.join(changed)}")
    if type(step) is not int or not 0 <= step <= run.steps:
        raise ValueError(f"{path}: it is of step {short(step)}, the run has {run.steps}")
    # A history that is not this one's stays as it is.
    checkpoint = path if path.is_file() else file_of(path, step)
    told = sum_up_to(run.files / HISTORY, step, progress.get("history"), checkpoint)
    return recorder.resume(step), told


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Within, the first SIGINT or SIGTERM is remembered; a second one acts as it always does."""
    received: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for sort, handler in before.items():
            signal.signal(sort, handler)

    try:
        for sort in (signal.SIGINT, signal.SIGTERM):
            before[sort] = signal.signal(sort, remember)
    except ValueError:  # Not in the main thread: signals are somebody else's.
        pass
    try:
        yield lambda: bool(received)
    finally:
        for sort, handler in before.items():
            signal.signal(sort, handler)
