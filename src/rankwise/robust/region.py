"""Where an adversarial input may lie: near the clean one, and within the bounds of all inputs."""

from typing import NamedTuple

from torch import Tensor

from rankwise.robust.ball import Ball

Bounds = tuple[float, float] | None


class Region(NamedTuple):
    """The inputs within `eps` of `x` (rows, ...) in the geometry of `ball`, and inside `bounds`.

    `x` itself is inside its bounds, so that clipping to these never leaves the ball.
    """

    x: Tensor
    eps: float
    ball: Ball
    bounds: Bounds

    def at(self, delta: Tensor) -> Tensor:
        """The point of the region that the perturbation `delta` leads to."""
        point = self.x + self.ball.project(delta, self.eps)
        return point if self.bounds is None else point.clamp(*self.bounds)
