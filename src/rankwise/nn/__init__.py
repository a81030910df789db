"""Modules that hold factors. They know nothing of training."""

from rankwise.nn.linear import LowRankLinear as LowRankLinear
