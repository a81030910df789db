"""FeDLRT: federated dynamical low-rank training."""

from dataclasses import dataclass, field

import torch

from rankwise.federated.correction import Correction, FullCorrection
from rankwise.federated.fedlrt_phases import Directions, Train
from rankwise.federated.message import Arrays
from rankwise.federated.outline import Outline
from rankwise.federated.phase import Method, Phase, Rate, check_descent, check_low_rank
from rankwise.federated.server_step import MeanStep, ServerStep
from rankwise.io.stored import MAX_DEFECT, join
from rankwise.numerics.factors import orthonormality_defect
from rankwise.numerics.given import check_integer, check_number


@dataclass(frozen=True)
class FeDLRT(Method):
    """Federated low-rank training in bases that all clients share.

    The server lets the bases grow by the range of the mean gradient, `[U, G V]` and `[V, G^T U]`;
    clients train the core between them, which is small and can be averaged; the mean is cut to its
    rank. Of a layer of m rows, n columns and rank r, a client gets and sends 3 (m + n) r + 5 r^2
    numbers in a round without correction, against 2 m n of `FedAvg`.

    Dense parameters are trained and averaged along, corrected in the same way.

    Args:
        correction: against the drift of clients with different data: `FullCorrection()`,
            `SimplifiedCorrection()` or `NoCorrection()`.
        lr: of plain gradient descent, or a function of the number of the round. With `steps` local
            steps, `lr * steps` is to be at most about one over the curvature of the loss.
        steps: local ones in a round, >= 1.
        rtol: the cut after a round takes away at most this share of the Frobenius norm of each
            layer, in [0, 1). What a round has learned is lost where it is smaller, so a start from
            large random weights wants a smaller tolerance, and `max_rank`.
        min_rank: of every layer, >= 1.
        max_rank: of every layer; None bounds it by the shape alone. Bases turn once in a round, so
            that a network trained from scratch in few rounds wants room.
        gradient_batches: batches for a gradient; None, or more than a client has, takes all its
            samples.
        direction_dtype: in which the new directions of the bases travel, such as `torch.bfloat16`;
            None for the type of the factors. Their rounding turns the new directions a little and
            nothing else, so that what a round converges to stays the same.
        server_step: what becomes of the mean change of the cores: `MeanStep()`, for which the
            theorems hold, or `SpectralStep()`, which takes fewer rounds on classifiers.

    References:
        Schotthoefer and Laiu, "Federated dynamical low-rank training with global loss convergence
        guarantees", 2024.
    """

    correction: Correction = field(default_factory=FullCorrection)
    lr: Rate = 0.01
    steps: int = 10
    rtol: float = 0.01
    min_rank: int = 1
    max_rank: int | None = None
    gradient_batches: int | None = None
    direction_dtype: torch.dtype | None = None
    server_step: ServerStep = field(default_factory=MeanStep)

    def __post_init__(self) -> None:
        if not isinstance(self.correction, Correction):
            raise TypeError(
                "`FeDLRT(correction=...)` must be `FullCorrection()`, `SimplifiedCorrection()` or "
                f"`NoCorrection()`, got {self.correction!r}"
            )
        if not isinstance(self.server_step, ServerStep):
            raise TypeError(
                "`FeDLRT(server_step=...)` must be `MeanStep()` or `SpectralStep()`, got "
                f"{self.server_step!r}"
            )
        check_descent("FeDLRT", self.lr, self.steps)
        check_number("FeDLRT(rtol=...)", self.rtol)
        if not 0.0 <= self.rtol < 1.0:
            raise ValueError(f"`FeDLRT(rtol=...)` must be in [0, 1), got {self.rtol}")
        for name in ("min_rank", "max_rank", "gradient_batches"):
            value = getattr(self, name)
            if value is not None or name == "min_rank":
                check_integer(f"FeDLRT({name}=...)", value)
                if value < 1:
                    raise ValueError(f"`FeDLRT({name}=...)` must be at least 1, got {value}")
        if self.direction_dtype not in (None, torch.bfloat16, torch.float32, torch.float64):
            raise ValueError(
                "`FeDLRT(direction_dtype=...)` must be None or a type of the range of float32, "
                f"such as `torch.bfloat16`, got {self.direction_dtype!r}"
            )
        if self.max_rank is not None and self.max_rank < self.min_rank:
            raise ValueError(
                f"`FeDLRT(max_rank=...)` must be at least min_rank = {self.min_rank}, got "
                f"{self.max_rank}"
            )

    @property
    def phases(self) -> tuple[Phase, ...]:
        directions = Directions(self.gradient_batches, self.direction_dtype)
        train = Train(
            self.lr, self.steps, self.rtol, self.min_rank, self.max_rank, self.server_step
        )
        return self.correction.phases(directions, train)

    def check(self, outline: Outline) -> None:
        check_low_rank("FeDLRT", outline)

    def check_state(self, outline: Outline, known: Arrays) -> None:
        for layer in outline.layers:
            for basis in "UV":
                name = join(layer, basis)
                defect = float(orthonormality_defect(known[name].double()))
                if not defect <= MAX_DEFECT:
                    raise ValueError(
                        f"the columns of {name!r} are not orthonormal (max |Q^T Q - I| = "
                        f"{defect:.1e})"
                    )
