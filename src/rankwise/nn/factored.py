"""What all modules with factors have in common: parameters, gradients, how a rank changes."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from rankwise.nn.resize import set_factor_
from rankwise.numerics.factors import Factors, check_factors


class Factored(nn.Module, ABC):
    """A module that multiplies rows by `U S V^T`; what the rows are is the subclass's.

    The parameters are named `U` (out, r), `S` (r, r), `V` (in, r). After a backward pass their
    `.grad` holds the tangent gradient `dK, dS, dL` of the mathematics, for `rankwise.Optimizer`.

    Args:
        factors: `U` and `V` with orthonormal columns.
        base: a frozen module whose output is added, or None: the factors are the weight.
        bias: only without a base, (out,).
        scale: factor of the low-rank part, finite and not 0, fixed for good: a change of rank never
            changes the function.
    """

    kernel_size: tuple[int, int] | None = None
    """(height, width) of the places that a row of `V` runs over; None where it is no image."""

    def __init__(
        self,
        factors: Factors,
        *,
        base: nn.Module | None = None,
        bias: Tensor | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_factors(factors)
        if base is not None and bias is not None:
            raise ValueError("`bias` belongs to a layer without a base; a base keeps its own")
        if bias is not None and bias.shape != (factors.shape[0],):
            raise ValueError(
                f"`bias` must have shape ({factors.shape[0]},), one number for each row of `U`, "
                f"got {tuple(bias.shape)}"
            )
        if not 0.0 < abs(scale) < float("inf"):
            raise ValueError(f"`scale` must be finite and not 0, got {scale}")
        # LAPACK's bases are column-major, which neither safetensors nor FSDP2 take.
        self.U, self.S, self.V = (
            nn.Parameter(t.detach().clone(memory_format=torch.contiguous_format)) for t in factors
        )
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.base = None if base is None else base.requires_grad_(False)
        self.scale = float(scale)
        self.merged = False
        self.register_load_state_dict_pre_hook(_resize_to_checkpoint)

    @property
    def rank(self) -> int:
        return self.S.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows of `U`, rows of `V`): the shape of `U S V^T`."""
        return self.U.shape[0], self.V.shape[0]

    def factors(self) -> Factors:
        """The factors, detached, sharing memory with the parameters."""
        return Factors(self.U.detach(), self.S.detach(), self.V.detach())

    def gradient(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """`dK` (out, r), `dL` (in, r), `dS` (r, r) of the last backward pass, None where absent."""
        return self.U.grad, self.V.grad, self.S.grad

    def set_factors_(self, f: Factors) -> None:
        """Replace the factors; the rank may change, the `Parameter` objects stay."""
        for parameter, value in zip((self.U, self.S, self.V), f, strict=True):
            set_factor_(parameter, value)

    def gradient_rows(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        """`X` (rows, in), `D` (rows, out) with `G = D^T X`, for an input and its output gradient.

        `G` is the gradient with respect to `U S V^T`.
        """
        return self.input_rows(x), self.output_rows(dy)

    @abstractmethod
    def input_rows(self, x: Tensor) -> Tensor:
        """All vectors (rows, in) of an input that the factors multiply."""

    @abstractmethod
    def output_rows(self, y: Tensor) -> Tensor:
        """The vectors (rows, out) of an output that belong to `input_rows`, in their order."""

    @abstractmethod
    def dense_layer(self) -> nn.Module:
        """The plain layer of the same function, weight whole; ValueError for an adapter."""

    @abstractmethod
    def two_layers(self) -> nn.Sequential:
        """Two plain layers of the same function, of rank as inner width; as `dense_layer`."""


def _resize_to_checkpoint(module: Factored, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before a state dict is copied in: give the factors the rank that it holds."""
    keys = [prefix + name for name in "USV"]
    if all(key in state for key in keys):
        stored = check_factors(Factors(*(state[key] for key in keys)))
        if stored.shape == module.shape and stored.rank != module.rank:
            like = module.S
            with torch.no_grad():
                module.set_factors_(Factors(*(t.to(like.device, like.dtype) for t in stored)))
