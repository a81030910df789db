"""For Lightning, with automatic or manual optimization."""

from pathlib import Path
from typing import Any

from torch import Tensor

from rankwise.integrations.found import rankwise_optimizers
from rankwise.optim.layers import trainable_layers
from rankwise.optim.optimizer import Optimizer
from rankwise.optim.ownership import unwrapped
from rankwise.report.recorder import Recorder
from rankwise.report.scalars import counts

try:
    from lightning.pytorch.callbacks import (
        Callback,
        GradientAccumulationScheduler,
        StochasticWeightAveraging,
        WeightAveraging,
    )
except ImportError as error:
    raise ImportError(
        'rankwise.integrations.lightning needs lightning: pip install "rankwise[loops]"'
    ) from error


class RankwiseCallback(Callback):
    """Logs ranks and sizes (see `rankwise.report.scalars`), and checks the trainer's arguments.

    `gradient_norm` is that before `gradient_clip_val` has had its effect. Before training begins it
    raises ValueError for an optimizer or a callback that cannot handle low-rank layers.

    Args:
        record: a folder for the run's history, of which `rankwise report` makes a page; for one
            optimizer, and a `training_step` that returns the loss. None: there is none.
    """

    def __init__(self, record: str | Path | None = None) -> None:
        self._record = record
        self._recording: Recording | None = None
        self._optimizers: list[Optimizer] = []
        self._norms: dict[int, Tensor] = {}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            check_callbacks(trainer, pl_module)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        write = "return `rankwise.Optimizer(self)` from `configure_optimizers`"
        self._optimizers = rankwise_optimizers(pl_module, trainer.optimizers, write)
        for optimizer in self._optimizers:
            check_accumulation(trainer, pl_module, optimizer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # Now a checkpoint has been restored.
        if self._record is not None:
            (optimizer,) = self._optimizers
            divided = pl_module.automatic_optimization
            self._recording = Recording(self._record, optimizer, divided=divided)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        inner = unwrapped(optimizer)
        if isinstance(inner, Optimizer):
            # Not yet a number: that would wait for the device.
            self._norms[id(inner)] = inner.gradient_norm()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for index, optimizer in enumerate(self._optimizers):
            prefix = "rankwise" if len(self._optimizers) == 1 else f"rankwise_{index}"
            numbers: dict[str, float | Tensor] = {**counts(optimizer)}
            if id(optimizer) in self._norms:
                numbers["gradient_norm"] = self._norms[id(optimizer)]
            pl_module.log_dict({f"{prefix}/{name}": n for name, n in numbers.items()})
        if self._recording is not None:
            self._recording.batch(outputs)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        if self._recording is not None:
            self._recording.recorder.finish()


class Recording:
    """Turns batches into the steps that a `Recorder` wants.

    Args:
        folder: of the run.
        optimizer: that trains.
        divided: whether losses of accumulated batches are divided by their number already.
    """

    def __init__(self, folder: str | Path, optimizer: Optimizer, *, divided: bool) -> None:
        self.recorder = Recorder(folder, optimizer)
        self._optimizer = optimizer
        self._divided = divided
        self._taken = self._count()
        self._losses: list[Tensor] = []
        if self._taken > 0:
            self.recorder.resume(self._taken)

    def batch(self, outputs: Any) -> None:
        """After a batch, which may have ended a step; ValueError without its loss."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):
            raise ValueError(
                "`RankwiseCallback(record=...)` writes the loss of every step: return it from "
                "`training_step`"
            )
        self._losses.append(loss.detach())
        if self._count() > self._taken:
            batches = 1 if self._divided else len(self._losses)
            self.recorder.step(sum(map(float, self._losses)) / batches)
            self._taken = self._count()
            self._losses.clear()

    def _count(self) -> int:
        return self._optimizer.steps + self._optimizer.skipped


def check_callbacks(trainer: Any, module: Any) -> None:
    """ValueError for callbacks that average factors."""
    for callback in trainer.callbacks:
        averages = isinstance(callback, (StochasticWeightAveraging, WeightAveraging))
        if averages and trainable_layers(module):
            raise ValueError(
                f"{type(callback).__name__} averages parameters one by one, and the mean of two "
                "bases is no basis: leave it out; a decay of the learning rate to zero has the "
                "same purpose"
            )


def check_accumulation(trainer: Any, module: Any, optimizer: Optimizer) -> None:
    """ValueError where an integrator that runs the model again would see only a last batch."""
    if optimizer.integrator.same_matrix or not module.automatic_optimization:
        return
    scheduled = any(isinstance(c, GradientAccumulationScheduler) for c in trainer.callbacks)
    if trainer.accumulate_grad_batches > 1 or scheduled:
        raise ValueError(
            f"the integrator {type(optimizer.integrator).__name__} runs the model again at every "
            "point, and Lightning would give it only the last of the accumulated batches: use "
            "`accumulate_grad_batches=1`, manual optimization, or an integrator of one backward "
            "pass (ParallelBUG, AugmentedBUG, AugmentedPSI)"
        )
