"""Diagnostics: the order of an integrator or retraction, and the state of a trained model."""

from rankwise.check.flow import RotatingFlow
from rankwise.check.model import orthonormality, stationarity
from rankwise.check.slope import Slope, order_of_retraction, order_of_step

__all__ = [
    "RotatingFlow",
    "Slope",
    "order_of_retraction",
    "order_of_step",
    "orthonormality",
    "stationarity",
]
