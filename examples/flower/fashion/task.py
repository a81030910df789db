"""What server and clients have in common: the network, the method and the names."""

from flwr.app import Context
from torch import nn

import rankwise as rw
from rankwise.federated import FeDLRT, FullCorrection
from rankwise.recipes.networks import mlp


def network() -> nn.Module:
    net = mlp(classes=10, channels=1, size=28)
    rw.factorize_(net, rank=16, init=rw.init.Random(seed=0), min_features=16)
    return net


def method(context: Context) -> FeDLRT:
    lr, steps = float(context.run_config["lr"]), int(context.run_config["steps"])
    return FeDLRT(correction=FullCorrection(), lr=lr, steps=steps, max_rank=16)


def name_of(partition: int) -> str:
    return f"site-{partition}"
