"""The parts that every federated method is made of."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import torch

from rankwise.federated.local import Local
from rankwise.federated.message import Arrays
from rankwise.federated.outline import Outline
from rankwise.io.stored import join
from rankwise.numerics.given import check_integer, check_number

Rate: TypeAlias = float | Callable[[int], float]


class Phase(ABC):
    """One exchange of a round: what clients answer, and what the server makes of the mean.

    `known` is what server and clients both know in the round so far: what the first request held,
    and what `combine` has added since. That is also what the next request tells.
    """

    name: ClassVar[str]

    @abstractmethod
    def reply_like(self, outline: Outline, known: Arrays) -> Arrays:
        """Names, shapes and types of a right answer; tensors without content."""

    @abstractmethod
    def answer(self, local: Local, outline: Outline, known: Arrays, own: Arrays) -> Arrays:
        """What a client replies. `own` is what it keeps for itself until the round ends."""

    @abstractmethod
    def combine(self, outline: Outline, known: Arrays, mean: Arrays, round: int) -> Arrays:
        """What the server makes of the mean of the answers: after the last phase the new state."""

    def news_like(self, outline: Outline, known: Arrays) -> Arrays:
        """Names, shapes and types of what `combine` gives; of no use after the last phase."""
        return {}


class Method(ABC):
    """How a round goes: its phases, in order."""

    lr: Rate
    steps: int

    @property
    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """At least one."""

    @abstractmethod
    def check(self, outline: Outline) -> None:
        """ValueError for a model that the method is not made for."""

    def check_state(self, outline: Outline, known: Arrays) -> None:
        """ValueError for finite values that the first request of a round must not hold."""
        return


def rate_at(lr: Rate, round: int) -> float:
    """The learning rate of a round; ValueError where a schedule gives none."""
    rate = float(lr(round)) if callable(lr) else float(lr)
    if not 0.0 <= rate < float("inf"):
        raise ValueError(f"`lr({round})` must be at least 0 and finite, got {rate}")
    return rate


def check_rate(owner: str, lr: Any) -> None:
    """TypeError or ValueError for a learning rate that cannot be meant."""
    if not callable(lr):
        check_number(f"{owner}(lr=...)", lr)
        if not 0.0 < lr < float("inf"):
            raise ValueError(f"`{owner}(lr=...)` must be positive and finite, got {lr}")


def check_descent(owner: str, lr: Any, steps: Any) -> None:
    """TypeError or ValueError for a learning rate or a number of steps that cannot be meant."""
    check_rate(owner, lr)
    check_integer(f"{owner}(steps=...)", steps)
    if steps < 1:
        raise ValueError(f"`{owner}(steps=...)` must be at least 1, got {steps}")


def check_low_rank(owner: str, outline: Outline) -> None:
    """ValueError unless there are low-rank layers that train, of a type that LAPACK has."""
    if not outline.layers:
        raise ValueError(
            f"`{owner}` trains low-rank layers, and `model` has none that trains: call "
            "`rankwise.factorize_` or `rankwise.adapt_` before, or use `FedAvg`"
        )
    for name, W in outline.layers.items():
        if W.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"`{owner}` takes factors in float32 or float64, and those of layer {name!r} are "
                f"{W.dtype}: call `.float()` on that layer"
            )


def factor_names(outline: Outline, factors: str) -> list[str]:
    """The given factors of every layer, `factors` a word such as "US"."""
    return [join(layer, f) for layer in outline.layers for f in factors]
