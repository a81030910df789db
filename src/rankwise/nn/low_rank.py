"""What all low-rank modules have in common: parameters, gradients, how a rank changes."""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rankwise.nn.base import check_module
from rankwise.nn.guard import guard
from rankwise.nn.resize import set_factor_
from rankwise.numerics.factors import Factors
from rankwise.numerics.given import check_number
from rankwise.numerics.manifold import TangentVector
from rankwise.numerics.tucker import Tucker

ORIGINAL = "unmerged_weight"
"""Buffer of a merged layer: the weight of its base without the adapter."""


class LowRankModule(nn.Module, ABC):
    """A module whose weight is a point of a manifold; which manifold is the subclass's.

    The parameters are the factors, named as in the point: `U` (out, .), a core, `V` (in, .). After
    a backward pass their `.grad` holds the coordinates of the tangent gradient, for
    `rankwise.Optimizer`.

    Args:
        factors: the point; `U` and `V` with orthonormal columns.
        base: a frozen module whose output is added, or None: the factors are the weight.
        bias: only without a base, (out,).
        scale: factor of the low-rank part, finite and not 0, fixed for good: a change of rank never
            changes the function.
    """

    point_type: ClassVar[type[Factors] | type[Tucker]]

    U: nn.Parameter
    V: nn.Parameter

    kernel_size: tuple[int, int] | None = None
    """(height, width) of the places that the weight runs over; None where it is no image."""

    can_rest: ClassVar[bool] = False
    """Whether a pass can leave the gradients of some factors out."""

    resting: frozenset[str] = frozenset()
    """Names of factors whose gradients the next passes leave out, where `can_rest`.

    Without "V" the input of the layer is not kept, for which nothing else has need; without "U" and
    "V" only the core's gradient is formed.
    """

    replicas: Any = None
    """What keeps the factors the same on several processes, see `rankwise.distributed`."""

    def __init__(
        self,
        factors: Any,
        *,
        base: nn.Module | None = None,
        bias: Tensor | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not isinstance(factors, self.point_type):
            raise TypeError(
                f"`factors` must be {self.point_type.__name__}"
                f"({', '.join(self.point_type._fields)}), got {type(factors).__name__}; "
                "`rankwise.factorize_` and `rankwise.adapt_` make layers of a model's own"
            )
        factors.checked()
        if base is not None and bias is not None:
            raise ValueError("`bias` belongs to a layer without a base; a base keeps its own")
        if bias is not None and bias.shape != (factors.shape[0],):
            raise ValueError(
                f"`bias` must have shape ({factors.shape[0]},), one number for each row of `U`, "
                f"got {tuple(bias.shape)}"
            )
        check_number("scale", scale)
        if not 0.0 < abs(scale) < float("inf"):
            raise ValueError(f"`scale` must be finite and not 0, got {scale}")
        # LAPACK's bases are column-major, which neither safetensors nor FSDP2 take.
        for name, t in factors._asdict().items():
            value = t.detach().clone(memory_format=torch.contiguous_format)
            self.register_parameter(name, nn.Parameter(value))
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.base = None if base is None else base.requires_grad_(False)
        self.scale = float(scale)
        self.merged = False
        self.register_load_state_dict_pre_hook(_resize_to_checkpoint)
        guard(self)

    def __getstate__(self) -> dict[str, Any]:
        # A copy has its own parameters, which nothing keeps together or lets rest yet.
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name not in {"replicas", "resting"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        guard(self)

    @property
    def frozen(self) -> Tensor | None:
        """The weight of the base as it is without the adapter, merged or not; None without base."""
        if self.base is None:
            return None
        weight = getattr(self, ORIGINAL, getattr(self.base, "weight", None))
        return weight if isinstance(weight, Tensor) else None

    @property
    def shape(self) -> tuple[int, int]:
        """(rows of `U`, rows of `V`)."""
        return self.U.shape[0], self.V.shape[0]

    @property
    def dense_numel(self) -> int:
        """Numbers in the weight if it were whole."""
        return math.prod((*self.shape, *self.factors().places))

    @property
    @abstractmethod
    def thin_numel(self) -> int:
        """Numbers in the weights of `thin_layers`."""

    @property
    def ranks(self) -> tuple[int, ...]:
        """One of each mode that has a rank of its own."""
        return tuple(mode.rank for mode in self.factors().modes())

    @abstractmethod
    def factors(self) -> Any:
        """The factors, detached, sharing memory with the parameters."""

    @abstractmethod
    def tangent_gradient(self) -> TangentVector:
        """`P(W) G` from the gradient slots of the last backward pass."""

    @abstractmethod
    def dense_layer(self) -> nn.Module:
        """The plain layer of the same function, weight whole; ValueError for an adapter."""

    @abstractmethod
    def thin_layers(self) -> nn.Sequential:
        """Thin plain layers of the same function, ranks as inner widths; as `dense_layer`."""

    def factor_parameters(self) -> tuple[nn.Parameter, ...]:
        """`U`, the core and `V`."""
        # Not by attributes, which a module looks up in three places: steps ask for this often.
        held: Any = self._parameters
        return tuple(held[name] for name in self.point_type._fields)

    def gradient(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The slots of `U`, `V` and the core after the last backward pass, None where absent."""
        U, core, V = self.factor_parameters()
        return U.grad, V.grad, core.grad

    def set_factors_(self, f: Any) -> None:
        """Replace the factors; the rank may change, the `Parameter` objects stay."""
        for name, value in zip(self.point_type._fields, f, strict=True):
            set_factor_(self, name, value)


def low_rank_layers(model: nn.Module) -> dict[str, LowRankModule]:
    """The low-rank layers of `model` by name; of those that share factors the first."""
    check_module(model)
    found: dict[int, tuple[str, LowRankModule]] = {}
    for name, module in model.named_modules():
        if isinstance(module, LowRankModule):
            found.setdefault(id(module.U), (name, module))
    return dict(found.values())


def _resize_to_checkpoint(
    module: LowRankModule, state: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """Before a state dict is copied in: give the factors the rank that it holds."""
    own = module.factors()
    keys = [prefix + name for name in own._fields]
    if all(key in state for key in keys):
        stored = own._make(state[key] for key in keys).checked()
        fits = (stored.shape, stored.places) == (own.shape, own.places)
        if fits and stored.modes() != own.modes():
            with torch.no_grad():
                module.set_factors_(stored._make(t.to(own.U.device, own.U.dtype) for t in stored))
