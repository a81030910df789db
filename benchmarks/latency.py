"""Is a shrunk model as fast as its multiplications promise? One thread, alternating, medians.

Beside whole models their low-rank layers are timed alone, on the inputs that they get in the model:
where a model falls short and its layers do not, the rest of the model is the reason.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
from alternating import alternate  # noqa: E402
from tables import table  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import rankwise as rw  # noqa: E402
from rankwise.init import Random  # noqa: E402

LEAST_FEATURES = 16
"""Maps that are smaller, such as those to ten classes, stay dense."""


@dataclass(frozen=True)
class Options:
    """Time dense models against their shrunk copies."""

    output: Path = Path("runs/latency")
    """Folder of the table and the numbers."""
    seconds: float = 2.0
    """Spent on each comparison."""
    batches: tuple[int, ...] = (1, 32)


@dataclass(frozen=True)
class Case:
    """A model, the shape of one input, and the share of the weights that each layer keeps."""

    name: str
    model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    share: float
    layout: torch.memory_format = torch.contiguous_format


def mlp(*widths: int) -> nn.Module:
    pairs = zip(widths[:-2], widths[1:-1], strict=True)
    layers = [part for n, m in pairs for part in (nn.Linear(n, m), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


def convolutional(size: int, *channels: int) -> nn.Module:
    pairs = zip(channels[:-1], channels[1:], strict=True)
    layers = [p for n, m in pairs for p in (nn.Conv2d(n, m, size, padding=size // 2), nn.ReLU())]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10)
    )


def block(width: int) -> nn.Module:
    return nn.Sequential(
        nn.TransformerEncoderLayer(
            width, width // 64, 4 * width, dropout=0.0, activation="gelu", batch_first=True
        )
    )


CASES = (
    Case("MLP 784-512-512-10", lambda: mlp(784, 512, 512, 10), (784,), 0.1),
    *(
        Case(f"MLP, 3 layers of {w}", lambda w=w: mlp(w, w, w, w, 10), (w,), 0.1)
        for w in (1024, 2048, 4096)
    ),
    *(
        Case(
            f"{size}x{size} convolutions {'-'.join(map(str, channels))}{told}",
            lambda size=size, channels=channels: convolutional(size, *channels),
            (channels[0], 28, 28),
            share,
            layout,
        )
        for size, channels, share in ((3, (32, 64, 128), 0.2), (1, (128, 256, 256), 0.3))
        for told, layout in (
            ("", torch.contiguous_format),
            (", channels last", torch.channels_last),
        )
    ),
    *(
        Case(f"transformer block of {w}", lambda w=w: block(w), (64, w), share)
        for w, share in ((384, 0.6), (384, 0.8), (576, 0.6), (576, 0.8))
    ),
)


def ranks_at(model: nn.Module, share: float) -> dict[str, int]:
    """`r (m + n) = share m n` in every matrix that is not small."""
    layers = rw.plan_factorize(model, rank=1, min_features=LEAST_FEATURES).factorized
    shapes = {layer.name: layer.shape for layer in layers}
    return {name: max(1, int(share * m * n / (m + n))) for name, (m, n) in shapes.items()}


@torch.no_grad()
def compare(case: Case, batch: int, seconds: float) -> dict[str, float]:
    torch.manual_seed(0)
    dense = case.model().eval().to(memory_format=case.layout)
    x = torch.randn(batch, *case.shape).contiguous(memory_format=case.layout)
    ranks = ranks_at(dense, case.share)
    plan = rw.plan_factorize(dense, rank=ranks, example=x)
    low = case.model().eval()
    rw.factorize_(low, rank=ranks, init=Random())
    small = rw.shrink(low).to(memory_format=case.layout)
    whole = alternate({"dense": lambda: dense(x), "small": lambda: small(x)}, seconds=seconds)
    parts = [layers_alone(small, name, x, case.layout, seconds / len(ranks)) for name in ranks]
    before = sum(layer.products for layer in plan.layers)
    alone = {side: sum(part[side] for part in parts) for side in ("dense", "small")}
    return {
        "products": sum(layer.products_kept for layer in plan.layers) / before,
        "dense": whole["dense"],
        "small": whole["small"],
        "layers dense": alone["dense"],
        "layers small": alone["small"],
    }


def layers_alone(
    small: nn.Module, name: str, x: Tensor, layout: torch.memory_format, seconds: float
) -> dict[str, float]:
    """Seconds of one layer, thin and with its weight whole, on what it gets in the model."""
    thin = small.get_submodule(name)
    met: list[Tensor] = []
    handle = thin.register_forward_pre_hook(lambda _, args: met.append(args[0]))
    small(x)
    handle.remove()
    whole = as_one(thin).to(memory_format=layout)
    return alternate(
        {"dense": lambda: whole(met[0]), "small": lambda: thin(met[0])}, seconds=seconds
    )


def as_one(thin: nn.Module) -> nn.Module:
    """A dense layer of the shape of two thin ones; its values do not matter here."""
    first, second = thin
    if isinstance(first, nn.Linear):
        return nn.Linear(first.in_features, second.out_features)
    return nn.Conv2d(
        first.in_channels, second.out_channels, first.kernel_size, padding=first.padding
    )


def rows(results: dict[str, dict[str, float]]) -> Iterator[list[str]]:
    yield ["model", "batch", "dense, ms", "shrunk, ms", "products", "time", "time of layers alone"]
    for key, r in results.items():
        name, batch = key.rsplit(", ", 1)
        cells = [f"{1e3 * r['dense']:.3g}", f"{1e3 * r['small']:.3g}", f"{r['products']:.2f}"]
        cells += [f"{r['small'] / r['dense']:.2f}", f"{r['layers small'] / r['layers dense']:.2f}"]
        yield [name, batch, *cells]


def main(options: Options) -> None:
    torch.set_num_threads(1)
    results: dict[str, dict[str, float]] = {}
    for case in CASES:
        for batch in options.batches:
            name = f"{case.name} at {case.share:.0%}, {batch}"
            results[name] = compare(case, batch, options.seconds)
            print(*list(rows({name: results[name]}))[1], sep="  ", flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "latency.json").write_text(json.dumps(results, indent=1))
    text = table(list(rows(results)))
    (options.output / "latency.md").write_text(text)
    print(text)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
