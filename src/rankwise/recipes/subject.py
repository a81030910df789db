"""What is compressed: a trained model with data to calibrate, heal and measure it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


class Subject(ABC):
    """A model and its data; rows are texts, passages or images.

    Attributes:
        name: of the model, for people.
        model: the trained original.
        select: which of its layers may become low rank, see `rankwise.surgery.select`.
        rows: number of rows to calibrate and heal with.
        distill: weight of the distance to the original in healing, unless a user says otherwise.
        curve_rows: number of held-out rows on which the curve over compression is measured.
    """

    name: str
    model: nn.Module
    select: Any
    rows: int
    distill: float = 0.5
    curve_rows: int = 300

    @abstractmethod
    def batch(self, rows: Sequence[int]) -> Batch:
        """These rows of the training part: named inputs of the model, and labels."""

    @abstractmethod
    def output(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the model says to a batch, (rows, ...)."""

    @abstractmethod
    def sampled_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """A loss whose gradients are the Fisher information, see `rankwise.compress.fisher`."""

    def reference(self, original: nn.Module, batch: Batch) -> Tensor | None:
        """What `loss` needs of the original; None where a batch has labels."""
        return None

    @abstractmethod
    def loss(self, output: Tensor, reference: Tensor | None, batch: Batch) -> Tensor:
        """What the model is for, a mean over rows."""

    @abstractmethod
    def distance(self, output: Tensor, original: Tensor) -> Tensor:
        """How far what the model says is from what the original says; a mean over rows."""

    @abstractmethod
    def measure(self, model: nn.Module, rows: int | None = None) -> dict[str, float]:
        """On all held-out rows or so many: `loss`, less is better; then what else is told."""

    @abstractmethod
    def example(self, rows: int) -> Any:
        """An input of that many rows, as the model takes it."""

    def limit(self, before: float, tolerance: float) -> float:
        """The highest value of `loss` within a tolerance."""
        return (1.0 + tolerance) * before

    def inner(self, model: nn.Module) -> nn.Module:
        """The module that users load, in a model of this subject."""
        return model

    @abstractmethod
    def save_beside(self, folder: Path) -> None:
        """Write what else users need to load it."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Differs for different data."""


def to_device(batch: Batch, model: nn.Module) -> Batch:
    device = next(model.parameters()).device
    return {name: t.to(device) for name, t in batch.items()}


def healing_loss(
    subject: Subject, model: nn.Module, original: nn.Module, batch: Batch, weight: float
) -> Tensor:
    """`(1 - weight) loss + weight distance to the original`; both means over rows."""
    batch = to_device(batch, model)
    output = subject.output(model, batch)
    total = output.new_zeros(())
    if weight < 1.0:
        with torch.no_grad():
            reference = subject.reference(original, batch)
        total = total + (1.0 - weight) * subject.loss(output, reference, batch)
    if weight > 0.0:
        with torch.no_grad():
            said = subject.output(original, batch)
        total = total + weight * subject.distance(output, said)
    return total
