"""Low-rank modules whose weight is one matrix."""

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from rankwise.nn.low_rank import LowRankModule
from rankwise.numerics.factors import Factors
from rankwise.numerics.tangent import Tangent

MERGE_FIRST = (
    "an adapter is not the weight, it is added to one: `merge_(model, final=True)` puts it in there"
)


def adapter_repr(layer: "Factored") -> str:
    """What `repr` tells of a layer with a base, "" of one without."""
    if layer.base is None:
        return ""
    return f", scale={layer.scale:g}" + (", merged" if layer.merged else "")


class Factored(LowRankModule):
    """A module that multiplies rows by `U S V^T`; what the rows are is the subclass's.

    The parameters are named `U` (out, r), `S` (r, r), `V` (in, r). After a backward pass their
    `.grad` holds the tangent gradient `dK, dS, dL` of the mathematics, for `rankwise.Optimizer`.
    """

    point_type: ClassVar[type[Factors]] = Factors

    S: nn.Parameter

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
    def thin_numel(self) -> int:
        return self.rank * sum(self.shape)

    @property
    def rank(self) -> int:
        return self.S.shape[0]

    def check_whole(self) -> None:
        """ValueError for an adapter."""
        if self.base is not None:
            raise ValueError(MERGE_FIRST)

    def factors(self) -> Factors:
        U, S, V = self.factor_parameters()
        return Factors(U.detach(), S.detach(), V.detach())

    def tangent_gradient(self) -> Tangent:
        """`P(W) G`; of factors that rest, the part within the bases: `U C`, `V C^T`."""
        dK, dL, C = self.gradient()
        assert C is not None
        U, _, V = self.factors()
        K = U @ C if dK is None or "U" in self.resting else dK
        return Tangent(K, V @ C.mT if dL is None or "V" in self.resting else dL, C)

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
