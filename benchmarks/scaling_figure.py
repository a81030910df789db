"""Bytes over the rank: of a GPU in a step, and of a client in a round."""

from pathlib import Path
from typing import Any

import scaling_clients
import scaling_gpus
from transformer_shapes import Shapes

RANKS = tuple(2**i for i in range(12))
GPUS = {
    "full, DDP": ("#999999", "-", 2),
    "full, FSDP2": ("#999999", "--", 2),
    "LoRA, DDP": ("#e69f00", "-", 5),
    "rankwise, DDP": ("#0072b2", "-", 2),
    "rankwise, DDP, bfloat16 gradients": ("#56b4e9", "-", 2),
    "rankwise, FSDP2": ("#0072b2", "--", 2),
}
CLIENTS = {
    "FedAvg": ("#999999", "-", 2),
    "LoRA factors averaged": ("#e69f00", "-", 5),
    "FeDLRT, no correction": ("#56b4e9", "-", 6),
    "FeDLRT, simplified": ("#009e73", "-", 3.5),
    "FeDLRT, full": ("#0072b2", "-", 1.5),
    "FeDLRT, full, bfloat16 directions": ("#cc79a7", "-", 1.5),
}
"""Colour, dashes and width; lines that lie on each other are of different widths."""
GIGA = 1e9


def draw(shapes: Shapes, processes: int, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained", dpi=130)
    gpus, clients = figure.subplots(1, 2)
    for method in scaling_gpus.METHODS:
        sent = [scaling_gpus.in_bytes(method, shapes, r, processes).sent for r in RANKS]
        _line(gpus, sent, method.name, GPUS[method.name])
    for client in (scaling_clients.FEDAVG, *scaling_clients.ADAPTERS):
        both = [scaling_clients.round_of(client, shapes, r, 1).both for r in RANKS]
        _line(clients, both, client.name, CLIENTS[client.name])
    gpus.set_ylabel("GB sent by a GPU in a step")
    gpus.set_title(f"fine-tuning on {processes} GPUs", fontsize=10)
    clients.set_ylabel("GB of a client in a round, down and up")
    clients.set_title("federated, frozen base", fontsize=10)
    for axes in (gpus, clients):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(RANKS[::2], [str(rank) for rank in RANKS[::2]])
        axes.minorticks_off()
        axes.set_xlabel("rank of every linear map")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def _line(axes: Any, sizes: list[float], name: str, style: tuple[str, str, float]) -> None:
    colour, dashes, width = style
    gigabytes = [size / GIGA for size in sizes]
    axes.plot(RANKS, gigabytes, dashes, color=colour, linewidth=width, label=name)
