"""Integrators of `W' = -grad L(W)` on the manifold of low-rank matrices, one file each."""

from rankwise.integrators.abc_psi import AugmentedPSI
from rankwise.integrators.augmented_bug import AugmentedBUG
from rankwise.integrators.bug import BUG
from rankwise.integrators.checked_bug import CheckedBUG
from rankwise.integrators.coefficients import BasisEvery, Coefficients
from rankwise.integrators.integrator import Integrator, step
from rankwise.integrators.parallel_bug import ParallelBUG
from rankwise.integrators.projector_splitting import ProjectorSplitting
from rankwise.integrators.reevaluated import Reevaluated

__all__ = [
    "BUG",
    "AugmentedBUG",
    "AugmentedPSI",
    "BasisEvery",
    "CheckedBUG",
    "Coefficients",
    "Integrator",
    "ParallelBUG",
    "ProjectorSplitting",
    "Reevaluated",
    "step",
]
