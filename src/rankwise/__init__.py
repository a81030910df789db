"""Low-rank training for PyTorch that finds the rank of every layer by itself."""

import importlib
import typing

from rankwise import adapters as adapters
from rankwise import check as check
from rankwise import compress as compress
from rankwise import cost as cost
from rankwise import distributed as distributed
from rankwise import init as init
from rankwise import report as report
from rankwise import robust as robust
from rankwise.io.checkpoint import load as load
from rankwise.io.checkpoint import save as save
from rankwise.io.export_lora import export_lora as export_lora
from rankwise.io.training import load_training as load_training
from rankwise.io.training import save_training as save_training
from rankwise.nn.conv import LowRankConv2d as LowRankConv2d
from rankwise.nn.linear import LowRankLinear as LowRankLinear
from rankwise.optim.adam import Adam as Adam
from rankwise.optim.budget import Budget as Budget
from rankwise.optim.optimizer import Optimizer as Optimizer
from rankwise.optim.rank_rule import FixedRank as FixedRank
from rankwise.optim.rate_free import RateFree as RateFree
from rankwise.optim.spectral import Spectral as Spectral
from rankwise.optim.tolerance import TailTolerance as TailTolerance
from rankwise.optim.tolerance import Tolerance as Tolerance
from rankwise.optim.update_rule import SGD as SGD
from rankwise.optim.update_rule import HeavyBall as HeavyBall
from rankwise.surgery.adapt import adapt_ as adapt_
from rankwise.surgery.factorize import factorize_ as factorize_
from rankwise.surgery.factorize import plan_factorize as plan_factorize
from rankwise.surgery.merge import merge_ as merge_
from rankwise.surgery.merge import unmerge_ as unmerge_
from rankwise.surgery.plan import plan as plan
from rankwise.surgery.shrink import densify_ as densify_
from rankwise.surgery.shrink import shrink as shrink

if typing.TYPE_CHECKING:
    from rankwise import federated as federated

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Adam",
    "Budget",
    "FixedRank",
    "HeavyBall",
    "LowRankConv2d",
    "LowRankLinear",
    "Optimizer",
    "RateFree",
    "Spectral",
    "TailTolerance",
    "Tolerance",
    "adapt_",
    "densify_",
    "export_lora",
    "factorize_",
    "load",
    "load_training",
    "merge_",
    "plan",
    "plan_factorize",
    "save",
    "save_training",
    "shrink",
    "unmerge_",
]


def __getattr__(name: str) -> typing.Any:
    # Seldom used, and an eighth of the time that it takes to import all the rest.
    if name == "federated":
        return importlib.import_module("rankwise.federated")
    raise AttributeError(f"module 'rankwise' has no attribute {name!r}")
