"""What is sent and held at scale, computed from the shapes of a transformer; nothing is measured.

The shapes are those of Llama 2 7B, read off the model without its weights. Tables: fine-tuning on
several GPUs, and a federation of which some clients take part in each round. Seconds are bytes over
the named bandwidth, without latency and without what computing hides of them. Nothing is drawn at
random, so there is no seed.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import scaling_clients as clients
import scaling_gpus as gpus
from scaling_figure import draw
from tables import table
from transformer_shapes import Shapes, transformer_shapes

from rankwise.surgery.count import factor_parameters

GIGA = 1e9


@dataclass(frozen=True)
class Options:
    """Compute what a large model sends and holds, on GPUs and in a federation."""

    output: Path = Path("runs/scaling")
    """Folder of the tables, the figure and the numbers."""
    rank: int = 16
    """Of adapters on every linear map of the blocks."""
    whole_ranks: tuple[int, ...] = (64, 256)
    """Of factors that stand in place of the maps."""
    processes: int = 8
    """GPUs."""
    clients: int = 10_000
    sampled: int = 100
    """Clients that take part in a round."""
    quick: bool = False
    """Two blocks of the 32."""


def main(options: Options) -> None:
    shapes = transformer_shapes(2 if options.quick else 32)
    options.output.mkdir(parents=True, exist_ok=True)
    texts = tables(shapes, options)
    text = "\n".join(texts.values())
    (options.output / "scaling.md").write_text(text)
    (options.output / "metrics.json").write_text(json.dumps(metrics(shapes, options), indent=1))
    draw(shapes, options.processes, options.output / "scaling.png")
    print(text)


def tables(shapes: Shapes, options: Options) -> dict[str, str]:
    """Markdown by what it is about."""
    return {
        "shapes": table(list(shape_rows(shapes, options))),
        "gpus": table(list(gpu_rows(shapes, options))),
        "clients": table(list(client_rows(shapes, options))),
    }


def shape_rows(shapes: Shapes, options: Options) -> Iterator[list[str]]:
    yield ["part", "shape", "count", "numbers", f"in factors, rank {options.rank}"]
    for m, n in dict.fromkeys(shapes.maps):
        count = shapes.maps.count((m, n))
        factors = count * factor_parameters(m, n, options.rank)
        yield [
            "linear maps in blocks",
            f"{m} x {n}",
            str(count),
            f"{count * m * n:,}",
            f"{factors:,}",
        ]
    yield ["embedding, head, norms", "", "", f"{shapes.rest:,}", ""]
    factors = sum(factor_parameters(m, n, options.rank) for m, n in shapes.maps)
    yield ["all", "", str(len(shapes.maps)), f"{shapes.total:,}", f"{factors:,}"]


def gpu_rows(shapes: Shapes, options: Options) -> Iterator[list[str]]:
    yield [
        "method",
        *("weights, GB", "gradients, GB", "optimizer, GB", "held, GB"),
        *("weights sent, GB", "gradients sent, GB"),
        *(f"at {link}" for link in gpus.LINKS),
    ]
    for method in gpus.METHODS:
        b = gpus.in_bytes(method, shapes, options.rank, options.processes)
        held = [gigabytes(x) for x in (b.weights, b.gradients, b.moments, b.held)]
        sent = [gigabytes(x) for x in (b.gathered, b.reduced)]
        yield [method.name, *held, *sent, *(duration(b.sent / s) for s in gpus.LINKS.values())]


def client_rows(shapes: Shapes, options: Options) -> Iterator[list[str]]:
    yield [
        *("what trains", "method", "exchanges", "down, GB", "up, GB", "of FedAvg"),
        *("down at 100 Mbit/s", "up at 10 Mbit/s"),
        *("server sends, GB", "server gets, GB", "server at 10 Gbit/s"),
    ]
    dense = clients.in_bytes(clients.FEDAVG, shapes, options.rank).both
    for what, method, b in federations(shapes, options):
        share = "1" if b.both == dense else f"1/{dense / b.both:.3g}"
        yield [
            *(what, method.name, str(method.exchanges), gigabytes(b.down), gigabytes(b.up), share),
            *(duration(b.down / clients.DOWN), duration(b.up / clients.UP)),
            *(gigabytes(options.sampled * b.down), gigabytes(options.sampled * b.up)),
            duration(options.sampled * max(b.down, b.up) / clients.SERVER),
        ]


def federations(
    shapes: Shapes, options: Options
) -> Iterable[tuple[str, clients.Method, clients.Bytes]]:
    """What trains, how, and what a client sends and gets for it."""
    groups = [
        ("all, dense", (clients.FEDAVG,), 0),
        (f"adapters, rank {options.rank}", clients.ADAPTERS, options.rank),
    ]
    groups += [(f"all, maps of rank {rank}", clients.WHOLE, rank) for rank in options.whole_ranks]
    for what, methods, rank in groups:
        for method in methods:
            yield what, method, clients.in_bytes(method, shapes, rank)


def metrics(shapes: Shapes, options: Options) -> dict[str, object]:
    """All numbers of the tables, in bytes."""
    of_gpus = {
        method.name: gpus.in_bytes(method, shapes, options.rank, options.processes)._asdict()
        for method in gpus.METHODS
    }
    of_clients = [
        {"trains": what, "method": method.name, "exchanges": method.exchanges, **b._asdict()}
        for what, method, b in federations(shapes, options)
    ]
    settings = {**asdict(options), "output": str(options.output)}
    return {"settings": settings, "numbers": shapes.total, "gpus": of_gpus, "clients": of_clients}


def gigabytes(count: float) -> str:
    """Three digits."""
    value = count / GIGA
    return "0" if value == 0 else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Of two digits, in the unit that fits."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= 2 * size or unit == "s" and seconds >= 1:
            return f"{seconds / size:.2g} {unit}"
    return f"{1e3 * seconds:.2g} ms"


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
