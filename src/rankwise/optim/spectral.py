"""The spectral rule: Muon's orthogonalised update, exact on a core of size 2r."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rankwise.numerics.factors import Factors
from rankwise.numerics.tangent import Tangent
from rankwise.optim.update_rule import State, UpdateRule, accumulate, check_unit_interval


@dataclass(frozen=True)
class Spectral(UpdateRule):
    """The polar factor `P Q^T` of the transported momentum (Jordan et al., 2024, "Muon").

    Momentum lives in `span[U, K] x span[V, L]`, so the SVD of its core is that of the matrix: no
    Newton-Schulz iteration, no full-size product. All singular values of the step are equal; their
    spectrum tells nothing of the rank that is needed, so combine it with `FixedRank` or `Budget`.

    Args:
        momentum: decay of the first moment, in [0, 1).
        rtol: singular directions below this, relative to the largest, are left out.
    """

    momentum: float = 0.9
    rtol: float = 1e-5

    def __post_init__(self) -> None:
        check_unit_interval("Spectral", "momentum", self.momentum)

    def direction(self, f: Factors, gradient: Tangent, state: State) -> Tangent:
        return accumulate(state, gradient, keep=self.momentum, add=1 - self.momentum)

    def core(self, core: Tensor, shape: tuple[int, int]) -> Tensor:
        P, sigma, Qh = torch.linalg.svd(core, full_matrices=False)
        weight = (sigma > self.rtol * sigma[:1]).to(core.dtype)
        # ||D|| = sqrt((m + n) r) for 2r equal singular values, the size of Adam's step.
        return (P * weight) @ Qh * (sum(shape) / 2) ** 0.5
