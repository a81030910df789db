"""For Lightning, with automatic or manual optimization."""

from typing import Any

from torch import Tensor

from rankwise.integrations.found import rankwise_optimizers, unwrapped
from rankwise.optim.layers import trainable_layers
from rankwise.optim.optimizer import Optimizer
from rankwise.report.scalars import counts

try:
    from lightning.pytorch.callbacks import (
        Callback,
        GradientAccumulationScheduler,
        StochasticWeightAveraging,
        WeightAveraging,
    )
except ImportError as error:
    raise ImportError("rankwise.integrations.lightning needs it: pip install lightning") from error


class RankwiseCallback(Callback):
    """Logs ranks and sizes (see `rankwise.report.scalars`), and checks the trainer's arguments.

    `gradient_norm` is that before `gradient_clip_val` has had its effect. Before training begins it
    raises ValueError for an optimizer or a callback that cannot handle low-rank layers.
    """

    def __init__(self) -> None:
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
