"""The spectral rule: Muon's orthogonalised update, exact on a core of size 2r."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rankwise.numerics.manifold import Point, T
from rankwise.numerics.spectrum import spectral_power
from rankwise.optim.remembered import Shapes, check_count
from rankwise.optim.update_rule import (
    State,
    UpdateRule,
    accumulate,
    check_unit_interval,
    look_ahead,
    newest,
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
    needs_matrices: ClassVar[bool] = True
    stackable: ClassVar[bool] = True
    remembers: ClassVar[tuple[str, ...]] = ("step", "momentum")
    turns: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_unit_interval("Spectral", "momentum", self.momentum)

    @property
    def mean_decay(self) -> float:
        return self.momentum

    def direction(self, f: Point, gradient: T, state: State) -> T:
        self.observe(f, gradient, state)
        M = gradient.like(*state["momentum"])
        return look_ahead(M, gradient, keep=self.momentum, step=state["step"])

    def observe(self, f: Point, gradient: T, state: State) -> None:
        state["step"] = state.get("step", 0) + 1
        accumulate(state, gradient, keep=self.momentum, add=1 - self.momentum)

    def check_state(self, shapes: Shapes, state: State) -> None:
        super().check_state(shapes, state)
        if "step" in state:
            check_count("step", state["step"], 1)

    def fresh(self, f: Point, gradient: T, state: State) -> T:
        return newest(gradient, keep=self.momentum, step=state["step"])

    def core(self, core: Tensor) -> Tensor:
        polar = spectral_power(core, 0.0)
        norm = torch.linalg.vector_norm(polar, dim=(-2, -1), keepdim=True)
        return polar / norm.clamp_min(torch.finfo(core.dtype).tiny)
