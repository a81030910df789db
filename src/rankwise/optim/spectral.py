"""The spectral rule: Muon's orthogonalised update, exact on a core of size 2r."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rankwise.numerics.factors import Factors
from rankwise.numerics.spectrum import spectral_power
from rankwise.numerics.tangent import Tangent, squared_norm
from rankwise.optim.update_rule import (
    State,
    UpdateRule,
    accumulate,
    check_unit_interval,
    look_ahead,
)


@dataclass(frozen=True)
class Spectral(UpdateRule):
    """The polar factor `P Q^T` of the transported momentum (Jordan et al., 2024, "Muon").

    Momentum lives in `span[U, K] x span[V, L]`, so the SVD of its core is that of the matrix: no
    Newton-Schulz iteration, no full-size product. `||D|| = 1`; the optimizer measures it by the
    layer's weight. All singular values of the step are equal, so their spectrum tells little of the
    rank that is needed: combine it with `FixedRank` or `Budget`.

    Args:
        momentum: decay of the first moment, in [0, 1).
    """

    momentum: float = 0.9

    relative: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_unit_interval("Spectral", "momentum", self.momentum)

    def direction(self, f: Factors, gradient: Tangent, state: State) -> Tangent:
        state["step"] = step = state.get("step", 0) + 1
        M = accumulate(state, gradient, keep=self.momentum, add=1 - self.momentum)
        ahead = look_ahead(M, gradient, keep=self.momentum, step=step)
        length = squared_norm(ahead).clamp_min(torch.finfo(ahead.C.dtype).tiny).sqrt()
        return Tangent(*(t / length for t in ahead))

    def core(self, core: Tensor) -> Tensor:
        return spectral_power(core, 0.0)
