"""For `transformers.Trainer` and its heirs, such as TRL's `SFTTrainer`."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from rankwise.integrations.found import rankwise_optimizers
from rankwise.io.checkpoint import save
from rankwise.optim.optimizer import Optimizer
from rankwise.report.recorder import Recorder
from rankwise.report.scalars import counts
from rankwise.surgery.layers import low_rank_layers

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        'rankwise.integrations.transformers needs it: pip install "rankwise[finetune]" accelerate'
    ) from error

WITHOUT_EFFECT = {
    "learning_rate": "lr",
    "weight_decay": "weight_decay",
    "adam_beta1": None,
    "adam_beta2": None,
    "adam_epsilon": None,
    "optim": None,
    "optim_args": None,
    "optim_target_modules": None,
}
"""Arguments for an optimizer that `Trainer` makes; what the one it is given has in their place."""


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
        self._norm: Tensor | None = None
        self._record = record
        self._recorder: Recorder | None = None

    def add_to(self, trainer: Any) -> None:
        """Put it before all other callbacks of `trainer`, so that all of them see its numbers."""
        trainer.callback_handler.callbacks.insert(0, self)
        self._comes_first = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        write = "pass `optimizers=(rankwise.Optimizer(model), None)` to the trainer"
        for optimizer in rankwise_optimizers(given["model"], [given["optimizer"]], write):
            check_arguments(args, optimizer)
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
        for optimizer in _optimizers(given):
            # Not yet a number: that would wait for the device.
            self._norm = optimizer.gradient_norm()

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        logs = given["logs"]
        # The other entries are results of an evaluation or of the whole run.
        if "loss" not in logs:
            return
        for optimizer in _optimizers(given):
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
        if control.should_training_stop and self._recorder is not None:
            last = [line for line in state.log_history if "eval_loss" in line][-1:]
            self._recorder.finish(last[0] if last else None)

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.is_world_process_zero and low_rank_layers(given["model"]):
            save(given["model"], Path(args.output_dir) / f"checkpoint-{state.global_step}")


def check_arguments(args: Any, optimizer: Optimizer) -> None:
    """ValueError for `TrainingArguments` that a trainer with this optimizer cannot heed."""
    given = [
        field.name
        for field in dataclasses.fields(args)
        if field.name in WITHOUT_EFFECT and getattr(args, field.name) != _default(field)
    ]
    for name in given:
        option, value = WITHOUT_EFFECT[name], getattr(args, name)
        if option is None or value != optimizer.defaults[option]:
            write = f"`rankwise.Optimizer(model, {option}={value!r})`" if option else "nothing"
            raise ValueError(
                f"`{type(args).__name__}({name}={value!r})` has no effect on an optimizer that the "
                f"trainer is given: leave it out, and write {write} in its place"
            )
    if not optimizer.integrator.same_matrix:
        raise ValueError(
            f"the integrator {type(optimizer.integrator).__name__} runs the model again, and "
            "`Trainer` calls `step()` without a closure to do so: use one of a single backward "
            "pass (ParallelBUG, AugmentedBUG, AugmentedPSI), or a loop of your own"
        )


def check_logging(args: Any) -> None:
    """ValueError unless the loss of each step is told."""
    if args.logging_strategy != "steps" or args.logging_steps != 1:
        raise ValueError(
            "`RankwiseCallback(record=...)` writes the loss of every step, which the trainer tells "
            'only with `logging_strategy="steps", logging_steps=1`'
        )


def _default(field: Any) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _optimizers(given: dict[str, Any]) -> list[Optimizer]:
    return rankwise_optimizers(given["model"], [given["optimizer"]], "")
