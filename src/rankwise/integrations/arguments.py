"""Arguments of `transformers.Trainer` and its heirs that a given optimizer cannot heed."""

import dataclasses
from typing import Any

from torch import nn

from rankwise.nn.low_rank import LowRankModule
from rankwise.optim.optimizer import Optimizer

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


def check_engine(args: Any) -> None:
    """ValueError for a training engine that keeps parameters of its own."""
    if getattr(args, "deepspeed", None):
        raise ValueError(
            f"`{type(args).__name__}(deepspeed=...)` keeps parameters in flat buffers of its own, "
            "and ranks change their shapes. Leave it out, and call "
            "`rankwise.distributed.prepare(model)` for DDP"
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


def check_head(args: Any, model: nn.Module) -> None:
    """ValueError for a head of low rank under TRL's `SFTTrainer`, which does not call it."""
    sft = any(kind.__name__ == "SFTConfig" for kind in type(args).__mro__)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if sft and isinstance(head, LowRankModule):
        name = next(name for name, module in model.named_modules() if module is head)
        raise ValueError(
            f"`SFTTrainer` reads the weight of the output layer {name!r} in place of calling it, "
            f"and a {type(head).__name__} has none: leave that layer out by `exclude={name!r}`"
        )
