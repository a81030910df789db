"""Modules that hold factors. They know nothing of training."""

from rankwise.nn.conv import LowRankConv2d as LowRankConv2d
from rankwise.nn.factored import Factored as Factored
from rankwise.nn.linear import LowRankLinear as LowRankLinear
from rankwise.nn.low_rank import LowRankModule as LowRankModule
from rankwise.nn.tucker import TuckerConv2d as TuckerConv2d
