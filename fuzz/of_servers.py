"""What a federated server has saved of itself."""

import copy
import warnings
from pathlib import Path

import torch
from torch import nn

from loader import Loader
from mutate import of_tensors
from of_models import start
from rankwise.federated import Client, FeDLRT, FullCorrection, Samples, Server, run

METHOD = FeDLRT(correction=FullCorrection(), lr=0.1, steps=1)
CLIENTS = ("a", "b")


def server(clients: tuple[str, ...] = CLIENTS) -> Server:
    return Server(copy.deepcopy(start()), METHOD, clients)


def client(name: str) -> Client:
    draw = torch.Generator().manual_seed(CLIENTS.index(name))
    x, y = torch.randn(8, 6, generator=draw), torch.randn(8, 4, generator=draw)
    return Client(name, copy.deepcopy(start()), METHOD, loss, Samples(x, y))


def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (model(x) - y).square().mean()


def server_seeds(folder: Path) -> list[bytes]:
    own, path = server(CLIENTS[:1]), folder / "server.safetensors"
    run(own, {CLIENTS[0]: client(CLIENTS[0])}, 1)
    own.save(path, {"rounds": 3})
    return [path.read_bytes()]


def read_server(content: bytes, folder: Path) -> None:
    path = folder / "server.safetensors"
    path.write_bytes(content)
    own = server(CLIENTS[:1])
    with warnings.catch_warnings():
        # Of a server with another seed.
        warnings.simplefilter("ignore", RuntimeWarning)
        own.load(path)
    # What is let in can go on; a client that diverges from it is left out, and the round is void.
    run(own, {CLIENTS[0]: client(CLIENTS[0])}, 1, watch=lambda record: None)


LOADERS = (Loader("server", server_seeds, read_server, (of_tensors,)),)
