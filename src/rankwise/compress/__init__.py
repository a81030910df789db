"""Compressing a trained network: which directions to keep, and how to heal what was lost."""

from rankwise.compress.calibration import Calibration as Calibration
from rankwise.compress.calibration import calibrate as calibrate
from rankwise.compress.fisher import sampled_cross_entropy as sampled_cross_entropy
from rankwise.compress.fisher import sampled_square_error as sampled_square_error
