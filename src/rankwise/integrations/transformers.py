"""For `transformers.Trainer` and its heirs, such as TRL's `SFTTrainer`."""

import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from rankwise.distributed.replicas import replicas_in
from rankwise.integrations.arguments import (
    check_arguments,
    check_engine,
    check_head,
    check_logging,
)
from rankwise.integrations.found import rankwise_optimizers
from rankwise.io.checkpoint import save
from rankwise.nn.low_rank import low_rank_layers
from rankwise.optim.optimizer import Optimizer
from rankwise.report.recorder import Recorder
from rankwise.report.scalars import counts

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        'rankwise.integrations.transformers needs transformers: pip install "rankwise[loops]"'
    ) from error


class RankwiseCallback(TrainerCallback):
    """Tells ranks and sizes to the log, writes adapters into checkpoints, checks the arguments.

    `Trainer(model, args, ..., optimizers=(rw.Optimizer(model), None), callbacks=[this])`. What it
    logs (see `rankwise.report.scalars`) is in the trainer's log history and on the progress bar.
    `Trainer` asks those of `report_to` before the callbacks that it is given; to have the numbers
    in TensorBoard and its kin too, write `RankwiseCallback().add_to(trainer)` instead.

    `gradient_norm` is that of the step, after `max_grad_norm` has had its effect.

    When training begins it raises ValueError for arguments that have no effect on an optimizer
    that is given, and for what cannot train low-rank layers.

    Args:
        record: a folder for the run's history, of which `rankwise report` makes a page; needs
            `logging_steps=1`. None: there is none.
    """

    def __init__(self, record: str | Path | None = None) -> None:
        self._comes_first = False
        self._optimizers: list[Optimizer] = []
        self._norm: Tensor | None = None
        self._record = record
        self._recorder: Recorder | None = None

    def add_to(self, trainer: Any) -> None:
        """Put it before all other callbacks of `trainer`, so that all of them see its numbers."""
        trainer.callback_handler.callbacks.insert(0, self)
        self._comes_first = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        write = "pass `optimizers=(rankwise.Optimizer(model), None)` to the trainer"
        self._optimizers = rankwise_optimizers(given["model"], [given["optimizer"]], write)
        for optimizer in self._optimizers:
            check_engine(args)
            check_arguments(args, optimizer)
            check_head(args, given["model"])
            if self._record is not None:
                check_logging(args)
                self._recorder = Recorder(self._record, optimizer)
                if state.global_step > 0:
                    self._recorder.resume(state.global_step)
        if args.report_to and not self._comes_first:
            warnings.warn(
                f"{', '.join(args.report_to)} will not get rankwise's numbers, because `Trainer` "
                "asks it first: write `RankwiseCallback().add_to(trainer)` in place of "
                "`callbacks=[RankwiseCallback()]`",
                stacklevel=2,
            )

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        for optimizer in self._optimizers:
            # Not yet a number: that would wait for the device.
            self._norm = optimizer.gradient_norm()

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        logs = given["logs"]
        # The other entries are results of an evaluation or of the whole run.
        if "loss" not in logs:
            return
        for optimizer in self._optimizers:
            numbers = counts(optimizer)
            if self._norm is not None:
                numbers["gradient_norm"] = float(self._norm)
            named = {f"rankwise/{name}": number for name, number in numbers.items()}
            logs.update(named)
            state.log_history[-1].update(named)
            if self._recorder is not None:
                self._recorder.step(logs["loss"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        # At the end of training the best model may have come back, with ranks of its own.
        if control.should_training_stop:
            self._finish(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        # The evaluation of the last epoch comes after its end, and may have been what ended it.
        self._finish(state)

    def _finish(self, state: Any) -> None:
        if self._recorder is not None:
            last = [line for line in state.log_history if "eval_loss" in line][-1:]
            self._recorder.finish(last[0] if last else None)

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if control.should_training_stop:
            self._finish(state)
        model = given["model"]
        # Of a prepared model all processes gather what is sharded, and the first one writes.
        mine = state.is_world_process_zero or replicas_in(model) is not None
        if mine and low_rank_layers(model):
            save(model, Path(args.output_dir) / f"checkpoint-{state.global_step}")
