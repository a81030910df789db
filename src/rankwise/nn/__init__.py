"""Modules that hold factors. They know nothing of training."""

from rankwise.nn.conv import LowRankConv2d as LowRankConv2d
from rankwise.nn.factored import Factored as Factored
from rankwise.nn.linear import LowRankLinear as LowRankLinear
