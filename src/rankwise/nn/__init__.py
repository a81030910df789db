"""Modules that hold factors. They know nothing of training."""

from rankwise.nn.compiled import compile_regions as compile_regions
from rankwise.nn.conv import LowRankConv2d as LowRankConv2d
from rankwise.nn.conv1d import LowRankConv1d as LowRankConv1d
from rankwise.nn.embedding import LowRankEmbedding as LowRankEmbedding
from rankwise.nn.factored import Factored as Factored
from rankwise.nn.linear import LowRankLinear as LowRankLinear
from rankwise.nn.low_rank import LowRankModule as LowRankModule
from rankwise.nn.tucker import TuckerConv2d as TuckerConv2d
