"""One step of an integrator, as a pure function of factors and gradient."""

from rankwise.numerics.factors import Factors
from rankwise.numerics.retract import Spectrum, core_of, decompose, embed, frame_of
from rankwise.numerics.tangent import Tangent


def parallel_step(f: Factors, direction: Tangent, *, lr: float) -> Spectrum:
    """`W - lr * direction`, exact and not yet cut: `cut(..., rank)` ends the step.

    With the tangent gradient as direction this is the parallel BUG step of Ceruti, Kusch and
    Lubich (SISC 2024), used by GeoLoRA (Schotthoefer et al., ICLR 2025, Algorithm 1): K, L and S
    move at once from the same bases, `W_hat = W - lr * P(W) G`.
    """
    frame = frame_of(f, direction)
    core = core_of(frame, f.rank, direction)
    return decompose(frame, embed(f.S, core) - lr * core)
