"""What is sent and held at scale, computed from the shapes of a transformer; nothing is measured.

The shapes are those of Llama 2 7B, read off the model without its weights. Tables: fine-tuning on
several GPUs, and a federation of which some clients take part in each round. Times are bytes over
the named bandwidth, without latency and without what computing hides of them. Nothing is drawn at
random, so there is no seed.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
    """Two blocks in place of 32."""


class Federation(NamedTuple):
    trains: str
    method: str
    round: clients.Round


def main(options: Options) -> None:
    shapes = transformer_shapes(2 if options.quick else 32)
    options.output.mkdir(parents=True, exist_ok=True)
    text = "\n".join(tables(shapes, options).values())
    (options.output / "scaling.md").write_text(text)
    (options.output / "metrics.json").write_text(json.dumps(metrics(shapes, options), indent=1))
    draw(shapes, options.processes, options.output / "scaling.png")
    print(text)


def tables(shapes: Shapes, options: Options) -> dict[str, str]:
    """Markdown by what it is about."""
    rows = {"shapes": shape_rows, "gpus": gpu_rows, "clients": client_rows, "server": server_rows}
    return {name: table(list(of(shapes, options))) for name, of in rows.items()}


def shape_rows(shapes: Shapes, options: Options) -> Iterator[list[str]]:
    yield ["part", "shape", "count", "numbers", f"in factors, rank {options.rank}"]
    whole = 0
    for m, n in dict.fromkeys(shapes.maps):
        count = shapes.maps.count((m, n))
        factors = count * factor_parameters(m, n, options.rank)
        whole += factors
        yield ["maps in blocks", f"{m} x {n}", str(count), f"{count * m * n:,}", f"{factors:,}"]
    yield ["embedding, head, norms", "", "", f"{shapes.rest:,}", ""]
    yield ["all", "", "", f"{shapes.total:,}", f"{whole:,}"]


def gpu_rows(shapes: Shapes, options: Options) -> Iterator[list[str]]:
    yield [
        *("method", "weights, GB", "gradients, GB", "optimizer, GB", "held, GB"),
        *("weights sent, GB", "gradients sent, GB"),
        *(f"at {link}" for link in gpus.LINKS),
    ]
    for method in gpus.METHODS:
        b = gpus.in_bytes(method, shapes, options.rank, options.processes)
        counts = (b.weights, b.gradients, b.moments, b.held, b.gathered, b.reduced)
        times = (b.sent / speed for speed in gpus.LINKS.values())
        yield [method.name, *map(gigabytes, counts), *map(duration, times)]


def client_rows(shapes: Shapes, options: Options) -> Iterator[list[str]]:
    yield [
        *("trains", "method", "exchanges", "down, GB", "up, GB", "of FedAvg"),
        *("down at 100 Mbit/s", "up at 10 Mbit/s", "kept, GB", "GFLOP a token"),
    ]
    played = federations(shapes, options)
    dense = played[0].round.both
    for trains, method, r in played:
        share = "1" if r.both == dense else f"1/{dense / r.both:.3g}"
        yield [
            *(trains, method, str(r.exchanges), gigabytes(r.down), gigabytes(r.up), share),
            *(duration(r.down / clients.DOWN), duration(r.up / clients.UP)),
            *(gigabytes(r.kept), f"{r.flops / GIGA:.3g}"),
        ]


def server_rows(shapes: Shapes, options: Options) -> Iterator[list[str]]:
    yield ["trains", "method", "sends, GB", "gets, GB", "at 10 Gbit/s", "holds, GB"]
    for trains, method, r in federations(shapes, options):
        down, up = options.sampled * r.down, options.sampled * r.up
        time = duration(max(down, up) / clients.SERVER)
        yield [trains, method, gigabytes(down), gigabytes(up), time, gigabytes(r.served)]
    base = options.clients * clients.BFLOAT16 * shapes.total
    time = duration(base / clients.SERVER)
    yield ["", f"once, the frozen base to {options.clients:,}", gigabytes(base), "0", time, ""]


def federations(shapes: Shapes, options: Options) -> list[Federation]:
    groups = [
        ("all, dense", options.rank, (clients.FEDAVG,)),
        (f"adapters, rank {options.rank}", options.rank, clients.ADAPTERS),
        *((f"all, maps of rank {rank}", rank, clients.WHOLE) for rank in options.whole_ranks),
    ]
    return [
        Federation(trains, method.name, clients.round_of(method, shapes, rank, options.sampled))
        for trains, rank, methods in groups
        for method in methods
    ]


def metrics(shapes: Shapes, options: Options) -> dict[str, Any]:
    """All numbers of the tables, in bytes."""
    return {
        "settings": {**asdict(options), "output": str(options.output)},
        "numbers": {"all": shapes.total, "not in maps": shapes.rest, "maps": len(shapes.maps)},
        "gpus": {
            m.name: gpus.in_bytes(m, shapes, options.rank, options.processes)._asdict()
            for m in gpus.METHODS
        },
        "clients": [
            {"trains": trains, "method": method, **r._asdict()}
            for trains, method, r in federations(shapes, options)
        ],
    }


def gigabytes(count: float) -> str:
    """Three digits."""
    value = count / GIGA
    return f"{value:,.0f}" if value == 0 or value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Two digits or more, in the unit that fits."""
    sizes = {"days": 86400.0, "h": 3600.0, "min": 60.0, "s": 1.0, "ms": 1e-3}
    unit = next((u for u, size in sizes.items() if seconds >= size), "ms")
    value = seconds / sizes[unit]
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
