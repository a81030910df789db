"""Adam for a tangent gradient: factored second moments that no change of basis touches."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rankwise.numerics.given import check_number
from rankwise.numerics.manifold import Point, T
from rankwise.numerics.spectrum import spectral_power
from rankwise.optim.remembered import Shapes, check_count, check_tensor
from rankwise.optim.update_rule import (
    State,
    UpdateRule,
    accumulate,
    check_unit_interval,
    look_ahead,
    newest,
)


@dataclass(frozen=True)
class Adam(UpdateRule):
    """`D = R M C` with diagonal `R` (m) and `C` (n), projected to tangent space, flattened.

    `M` is the transported first moment, one step ahead (Nesterov, as in NAdam). `R` and `C` come
    from the mean squares of the rows of `dK` and of `dL`, i.e. of the rows and columns of `P(W) G`:
    a rotation of `V` mixes the entries of a row of `dK` and leaves the row's length, so these
    moments need no transport and never go stale. As in Adafactor (Shazeer and Stern, 2018) the
    second moment of entry (i, j) is the product `v_i c_j` up to a constant.

    In a Tucker kernel rows are output channels and columns input channels.

    The spectrum of `D` decides whether rank pays: a gradient's own is so steep that only its first
    directions move, a flat one (Muon) trains noise. Its square root is between the two.

    The size of a step does not depend on the rank: `||D|| = 1` for gradients without noise, less
    with it. The optimizer measures it by the layer's weight.

    Args:
        betas: decay of the first and second moments, in [0, 1).
        power: `R = v^-power`, `C = c^-power`; 1/2 is Adam's, 0 leaves rows and columns alone.
        spectrum: power of the singular values of the direction, in a Tucker kernel of both modes
            (see `spectral_power`); 1 leaves them alone.
        eps: smallest second moment of a row, relative to the mean over rows.
    """

    betas: tuple[float, float] = (0.9, 0.99)
    power: float = 0.5
    spectrum: float = 0.5
    eps: float = 1e-6

    relative: ClassVar[bool] = True
    stackable: ClassVar[bool] = True
    remembers: ClassVar[tuple[str, ...]] = ("step", "momentum", "row", "column", "energy")
    turns: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not isinstance(self.betas, (tuple, list)) or len(self.betas) != 2:
            raise TypeError(f"`Adam(betas=...)` must be two numbers, got {self.betas!r}")
        for beta in self.betas:
            check_unit_interval("Adam", "betas", beta)
        for name in ("power", "spectrum"):
            check_number(f"Adam({name}=...)", getattr(self, name))
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"`Adam({name}=...)` must be in [0, 1], got {getattr(self, name)}")

    @property
    def mean_decay(self) -> float:
        return self.betas[0]

    def direction(self, f: Point, gradient: T, state: State) -> T:
        self.observe(f, gradient, state)
        M = gradient.like(*state["momentum"])
        ahead = look_ahead(M, gradient, keep=self.betas[0], step=state["step"])
        return self._precondition(f, ahead, state)

    def observe(self, f: Point, gradient: T, state: State) -> None:
        beta1, beta2 = self.betas
        state["step"] = state.get("step", 0) + 1
        accumulate(state, gradient, keep=beta1, add=1 - beta1)
        rows, columns, energy = gradient.squares()
        _average(state, "row", rows, beta2)
        _average(state, "column", columns, beta2)
        _average(state, "energy", energy, beta2)

    def check_state(self, shapes: Shapes, state: State) -> None:
        super().check_state(shapes, state)
        if "momentum" in state:
            check_count("step", state["step"], 1)
            for name, shape in (("row", shapes.U[:1]), ("column", shapes.V[:1]), ("energy", ())):
                check_tensor(name, state[name], shape, positive=True)

    def fresh(self, f: Point, gradient: T, state: State) -> T:
        seen = newest(gradient, keep=self.betas[0], step=state["step"])
        return self._precondition(f, seen, state)

    def core(self, core: Tensor) -> Tensor:
        return core if self.spectrum == 1.0 else spectral_power(core, self.spectrum)

    def _precondition(self, f: Point, xi: T, state: State) -> T:
        energy = state["energy"]
        mean = energy.clamp_min(torch.finfo(energy.dtype).tiny)
        size = mean.rsqrt() * (1 - self.betas[1] ** state["step"]) ** 0.5
        return scale_sides(
            f, xi, self._weights(state["row"]) * size[..., None], self._weights(state["column"])
        )

    def _weights(self, moment: Tensor) -> Tensor:
        mean = moment.mean(-1, keepdim=True).clamp_min(torch.finfo(moment.dtype).tiny)
        return (moment / mean).add_(self.eps).pow_(-self.power)


def scale_sides(f: Point, xi: T, row: Tensor, column: Tensor) -> T:
    """`P(W) diag(row) xi diag(column)` for `row` (m,) and `column` (n,), nothing dense."""
    return xi.scaled_sides(f, row, column)


def _average(state: State, name: str, value: Tensor, beta: float) -> None:
    if name not in state:
        state[name] = torch.zeros_like(value)
    state[name].lerp_(value, 1 - beta)
