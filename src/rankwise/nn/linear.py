"""The linear map of low rank, with or without a frozen base."""

from typing import Any

import torch
from torch import Tensor, nn

from rankwise.nn.base import frozen_weight, linear_shape
from rankwise.nn.function import low_rank_product
from rankwise.nn.resize import set_factor_
from rankwise.numerics.factors import Factors, check_factors


class LowRankLinear(nn.Module):
    """`y = base(x) + scale * x (U S V^T)^T`, or `y = x (U S V^T)^T + bias` without a base.

    Args:
        factors: `U` (out, r), `S` (r, r), `V` (in, r); `U` and `V` with orthonormal columns.
        base: a module with a linear forward (`nn.Linear`, Hugging Face's `Conv1D`, a quantised
            linear map); it is frozen. None: the factors are the weight.
        bias: only without a base, (out,).
        scale: factor of the low-rank part, finite and not 0, fixed for good: a change of rank never
            changes the function.

    The parameters are named `U`, `S`, `V`. After a backward pass their `.grad` holds the tangent
    gradient `dK, dS, dL` (see `rankwise.nn.function`), for `rankwise.Optimizer`.
    """

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
        if base is not None and linear_shape(base) != factors.shape:
            raise ValueError(
                f"`factors` of shape {factors.shape} do not fit the base {type(base).__name__} "
                f"of shape {linear_shape(base)} (out, in)"
            )
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
    def weight(self) -> Tensor:
        """The frozen weight of the base, for code that asks a layer for its dtype or device.

        Without a base there is no such attribute: the weight is `factors().dense()`.
        """
        if self.base is None:
            raise AttributeError("weight")
        weight: Any = self.base.weight
        return weight

    @property
    def rank(self) -> int:
        return self.S.shape[0]

    @property
    def out_features(self) -> int:
        return self.U.shape[0]

    @property
    def in_features(self) -> int:
        return self.V.shape[0]

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

    def forward(self, x: Tensor) -> Tensor:
        if self.base is None:
            return low_rank_product(x, self.U, self.S, self.V, None, self.bias, scale=self.scale)
        if self.merged:
            return self.base(x)
        weight = frozen_weight(self.base)
        if weight is None:
            return self.base(x) + low_rank_product(x, self.U, self.S, self.V, scale=self.scale)
        return low_rank_product(x, self.U, self.S, self.V, *weight, scale=self.scale)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"scale={self.scale:g}" + (", merged" if self.merged else "")
        )


def _resize_to_checkpoint(
    module: LowRankLinear, state: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """Before a state dict is copied in: give the factors the rank that it holds."""
    keys = [prefix + name for name in "USV"]
    if all(key in state for key in keys):
        stored = check_factors(Factors(*(state[key] for key in keys)))
        if stored.shape == (module.out_features, module.in_features) and stored.rank != module.rank:
            like = module.S
            with torch.no_grad():
                module.set_factors_(Factors(*(t.to(like.device, like.dtype) for t in stored)))
