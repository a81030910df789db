"""Diagnostics: orders of integrators, the state of a trained model, what ails a training."""

from rankwise.check.base import fingerprints
from rankwise.check.examine import examine
from rankwise.check.finding import Finding, Findings, Verdict
from rankwise.check.flow import RotatingFlow
from rankwise.check.model import orthonormality, stationarity
from rankwise.check.slope import Slope, order_of_retraction, order_of_step
from rankwise.optim.guard import Guard, Incidents

__all__ = [
    "Finding",
    "Findings",
    "Guard",
    "Incidents",
    "RotatingFlow",
    "Slope",
    "Verdict",
    "examine",
    "fingerprints",
    "order_of_retraction",
    "order_of_step",
    "orthonormality",
    "stationarity",
]
