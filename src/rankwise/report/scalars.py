"""A run in a few numbers a step, for TensorBoard and its kin."""

from rankwise.optim.layers import numbers_held
from rankwise.optim.optimizer import Optimizer
from rankwise.optim.together import replicas_of


def scalars(optimizer: Optimizer) -> dict[str, float]:
    """Where training stands, under names that all of rankwise's integrations use.

    Args:
        optimizer: after `backward()`, before `zero_grad()`, for its gradient norm. Where parameters
            are sharded, all processes ask for it.

    Returns:
        `mean_rank`: over the layers (of Tucker kernels, over their modes), absent without layers;
        `parameters`: numbers in the factors;
        `skipped_steps`: steps skipped so far for a gradient that was not finite;
        `bytes_per_step`: that the factor gradients of the last step sent from each process; absent
        on a single one;
        `gradient_norm`: `optimizer.gradient_norm()`, 0 at a stationary point; absent where no
        parameter has a gradient.
    """
    numbers = counts(optimizer)
    if any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
        numbers["gradient_norm"] = float(optimizer.gradient_norm())
    return numbers


def counts(optimizer: Optimizer) -> dict[str, float]:
    """Those of `scalars` that need no gradient, and nothing from the device."""
    ranks = [rank for _, layer in optimizer.layers for rank in layer.ranks]
    numbers = {"mean_rank": sum(ranks) / len(ranks)} if ranks else {}
    numbers["parameters"] = float(numbers_held(optimizer.layers))
    numbers["skipped_steps"] = float(optimizer.skipped)
    numbers |= sent(optimizer)
    return numbers


def sent(optimizer: Optimizer) -> dict[str, float]:
    """`bytes_per_step` where the model trains on several processes, else nothing."""
    replicas = replicas_of(optimizer.layers)
    if replicas is None or replicas.processes == 1:
        return {}
    return {"bytes_per_step": float(replicas.traffic.last)}
