"""What keeping spectra in shape adds to a training step: one thread, alternating, medians."""

import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
from alternating import alternate  # noqa: E402
from latency import mlp  # noqa: E402
from tables import table  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

import rankwise as rw  # noqa: E402
from rankwise import robust  # noqa: E402
from rankwise.nn import LowRankConv2d, TuckerConv2d  # noqa: E402
from rankwise.recipes.networks import vgg  # noqa: E402

STEPS = 3
"""Timed together."""
KINDS = {
    "none": None,
    "SpreadPenalty": robust.SpreadPenalty(0.3),
    "ConditionLimit": robust.ConditionLimit(2.0),
    "NormLimit": robust.NormLimit(1.0),
}


@dataclass(frozen=True)
class Options:
    """Time training steps with and without conditioning."""

    output: Path = Path("runs/conditioning_cost")
    seconds: float = 40.0
    """Spent on each network."""


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """By name: a network, and its inputs."""
    small, large = mlp(784, 512, 512, 10), mlp(784, 2048, 2048, 2048, 10)
    rw.factorize_(small, rank=26, min_features=16, init=rw.init.Random())
    rw.factorize_(large, rank=50, min_features=16, init=rw.init.Random())
    images = torch.randn(128, 1, 28, 28)
    found = {"MLP 512, rank 26": small, "MLP 2048, rank 50": large}
    cases = {name: (model, images.flatten(1)) for name, model in found.items()}
    for name, form in (("matrices", LowRankConv2d), ("Tucker", TuckerConv2d)):
        model = vgg(10, 1, 28)
        rw.factorize_(model, rank=16, min_features=16, init=rw.init.Random(), convolution=form)
        cases[f"VGG, {name}, rank 16"] = model, images
    adapted = nn.Sequential(*(nn.Linear(384, 384) for _ in range(36)), nn.Linear(384, 10))
    rw.adapt_(adapted, rank=8, exclude="36", train="36")
    cases["36 adapters of 384, rank 8"] = adapted, torch.randn(2048, 384)
    return cases


def stepper(model: nn.Module, x: Tensor, kind: robust.Conditioning | None) -> Callable[[], None]:
    own = copy.deepcopy(model)
    optimizer = rw.Optimizer(own, lr=1e-4, conditioning=kind)
    y = torch.randint(10, (len(x),), generator=torch.Generator().manual_seed(0))

    def steps() -> None:
        for _ in range(STEPS):
            cross_entropy(own(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    return steps


def rows(results: Mapping[str, Mapping[str, float]]) -> Iterator[list[str]]:
    kinds = [kind for kind in KINDS if kind != "none"]
    yield ["network", "ms a step", *(f"{kind}, %" for kind in kinds)]
    for network, seconds in results.items():
        added = [f"{100 * (seconds[kind] / seconds['none'] - 1):+.1f}" for kind in kinds]
        yield [network, f"{1e3 * seconds['none'] / STEPS:.1f}", *added]


def main(options: Options) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results = {}
    for name, (model, x) in networks().items():
        steps = {kind: stepper(model, x, value) for kind, value in KINDS.items()}
        results[name] = alternate(steps, seconds=options.seconds)
        print(*list(rows({name: results[name]}))[1], sep="  ", flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "conditioning_cost.json").write_text(json.dumps(results, indent=1))
    (options.output / "conditioning_cost.md").write_text(table(list(rows(results))))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options))
