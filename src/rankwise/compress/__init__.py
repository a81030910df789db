"""Compressing a trained network: which directions to keep, and how to heal what was lost."""

from rankwise.compress.calibration import Calibration as Calibration
from rankwise.compress.calibration import calibrate as calibrate
from rankwise.compress.distill import distillation_loss as distillation_loss
from rankwise.compress.fisher import sampled_cross_entropy as sampled_cross_entropy
from rankwise.compress.fisher import sampled_square_error as sampled_square_error
from rankwise.compress.trial import cut_weights as cut_weights
from rankwise.compress.trial import least_keep as least_keep
from rankwise.compress.truncation import Truncation as Truncation
from rankwise.compress.truncation import truncate_ as truncate_

__all__ = [
    "Calibration",
    "Truncation",
    "calibrate",
    "cut_weights",
    "distillation_loss",
    "least_keep",
    "sampled_cross_entropy",
    "sampled_square_error",
    "truncate_",
]
