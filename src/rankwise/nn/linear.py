"""The linear map of low rank, with or without a frozen base."""

from torch import Tensor, nn

from rankwise.nn.base import frozen_weight, linear_shape
from rankwise.nn.factored import Factored
from rankwise.nn.function import low_rank_product, rows_of
from rankwise.nn.plain import linear
from rankwise.numerics.factors import Factors, check_factors


class LowRankLinear(Factored):
    """`y = base(x) + scale * x (U S V^T)^T`, or `y = x (U S V^T)^T + bias` without a base.

    Args:
        factors: `U` (out, r), `S` (r, r), `V` (in, r); `U` and `V` with orthonormal columns.
        base: a module with a linear forward (`nn.Linear`, Hugging Face's `Conv1D`, a quantised
            linear map); it is frozen. None: the factors are the weight.
        bias: only without a base, (out,).
        scale: factor of the low-rank part, finite and not 0, fixed for good.
    """

    can_rest = True

    def __init__(
        self,
        factors: Factors,
        *,
        base: nn.Module | None = None,
        bias: Tensor | None = None,
        scale: float = 1.0,
    ) -> None:
        if base is not None and linear_shape(base) != check_factors(factors).shape:
            raise ValueError(
                f"`factors` of shape {factors.shape} do not fit the base {type(base).__name__} "
                f"of shape {linear_shape(base)} (out, in)"
            )
        super().__init__(factors, base=base, bias=bias, scale=scale)

    @property
    def out_features(self) -> int:
        return self.U.shape[0]

    @property
    def in_features(self) -> int:
        return self.V.shape[0]

    def input_rows(self, x: Tensor) -> Tensor:
        return rows_of(x)

    def output_rows(self, y: Tensor) -> Tensor:
        return rows_of(y)

    def dense_layer(self) -> nn.Module:
        self.check_whole()
        return linear(self.scale * self.factors().dense(), self.bias).train(self.training)

    def thin_layers(self) -> nn.Sequential:
        self.check_whole()
        B, A = self.factors().balanced()
        first, second = linear(A, None), linear(self.scale * B, self.bias)
        return nn.Sequential(first, second).train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        # By attributes: what `nn.DataParallel` makes of a layer has no parameters.
        factors: tuple[Tensor, ...] = (self.U, self.S, self.V)
        if self.resting:
            named = zip("USV", factors, strict=True)
            factors = tuple(t.detach() if name in self.resting else t for name, t in named)
        U, S, V = factors
        if self.base is None:
            return low_rank_product(x, U, S, V, None, self.bias, scale=self.scale)
        if self.merged:
            return self.base(x)
        weight = frozen_weight(self.base)
        if weight is None:
            return self.base(x) + low_rank_product(x, U, S, V, scale=self.scale)
        return low_rank_product(x, U, S, V, *weight, scale=self.scale)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"scale={self.scale:g}" + (", merged" if self.merged else "")
        )
