"""What server and clients have in common: the data set, the network, the method and the names."""

from functools import cache

from flwr.app import Context
from torch import nn

import rankwise as rw
from rankwise.federated import FeDLRT, FullCorrection
from rankwise.recipes import networks
from rankwise.recipes.images import Images, read_images

read = cache(read_images)


def images_of(context: Context) -> Images:
    return read(str(context.run_config["data"]))


def network(images: Images) -> nn.Module:
    channels, size, _ = images.train.shape[1:]
    classes = len(images.classes)
    net = networks.network("mlp", classes=classes, channels=channels, size=size, seed=0)
    rw.factorize_(net, rank=16, init=rw.init.Random(seed=0), min_features=16)
    return net


def method(context: Context) -> FeDLRT:
    lr, steps = float(context.run_config["lr"]), int(context.run_config["steps"])
    return FeDLRT(correction=FullCorrection(), lr=lr, steps=steps, max_rank=16)


def name_of(partition: int) -> str:
    return f"site-{partition}"
