"""Networks that small changes of the input do not fool: spectra, attacks, certificates."""

from rankwise.numerics.condition import clipped_about_mean as clipped_about_mean
from rankwise.numerics.condition import (
    clipped_about_root_mean_square as clipped_about_root_mean_square,
)
from rankwise.numerics.condition import nearest_conditioned as nearest_conditioned
from rankwise.optim.conditioning import ConditionLimit as ConditionLimit
from rankwise.optim.conditioning import NormLimit as NormLimit
from rankwise.optim.conditioning import OrthonormalCore as OrthonormalCore
from rankwise.optim.conditioning import SpreadPenalty as SpreadPenalty
from rankwise.robust.condition_numbers import condition_numbers as condition_numbers
