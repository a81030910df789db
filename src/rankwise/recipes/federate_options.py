"""What `rankwise federate` can be told."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from rankwise.recipes.folder import require
from rankwise.recipes.seed import check_seed
from rankwise.recipes.split import LEAST_ALPHA

Correction = Literal["none", "simplified", "full"]
OTHERS = ("none", "simplified", "full", "fedavg", "factor-average")


@dataclass(frozen=True)
class FederateOptions:
    """Train one image classifier on the data of many clients, in low rank, with few bytes.

    Without options: a perceptron on Fashion-MNIST, whose classes are dealt out unevenly to eight
    clients; FeDLRT, and FedAvg of dense weights beside it, in minutes on one core.
    """

    data: str = "fashion-mnist"
    """fashion-mnist, mnist, a folder of idx files, or one of train/CLASS/ and test/CLASS/."""
    model: str = "mlp"
    """mlp, lenet, cnn, vgg, mobile, vit, or package.module:factory, which returns a module."""
    clients: int = 8
    """How many share the training images."""
    alpha: float = 0.1
    """Of the Dirichlet distribution of each class over clients; small is uneven."""
    correction: Correction = "full"
    """Against the drift of clients: none, simplified (no further exchange), full (one more)."""
    compare: tuple[str, ...] = ("fedavg",)
    """Trained beside it: fedavg, factor-average (naive), none, simplified, full; may be empty."""
    rounds: int = 40
    """Times that the server asks the clients."""
    local_steps: int = 10
    """Steps of a client in a round."""
    lr: float = 0.03
    """Learning rate of clients in low rank, constant for half of the rounds, then down to zero."""
    server_lr: float = 0.3
    """Of FeDLRT: the server's spectral step over the norm of a core, falling; 0 for the mean."""
    fedavg_steps: int = 80
    """Local steps of FedAvg."""
    fedavg_lr: float = 0.2
    """Learning rate of FedAvg, with the same course."""
    rank: int = 20
    """Of every layer at the start; factor averaging keeps it."""
    max_rank: int | None = 20
    """Of every layer."""
    tolerance: float = 0.01
    """A round ends with a cut that takes away at most this part of each layer's norm."""
    gradient_batches: int | None = 20
    """Batches of each gradient that FeDLRT asks for beside the steps; fewer where data end."""
    directions: Literal["float32", "bfloat16"] = "bfloat16"
    """Type in which FeDLRT sends the directions by which bases grow."""
    batch_size: int = 64
    """Images in a local step."""
    participation: float = 1.0
    """Share of the clients that a round asks, drawn by the server."""
    engine: Literal["in-process", "flower"] = "in-process"
    """Where clients run: one after the other in this process, or in Flower's simulation."""
    seed: int = 0
    """Of the split, the start, the order of the data and who takes part."""
    output: Path = Path("runs/federate")
    """Folder of the results."""
    resume: bool = False
    """Go on with the interrupted run in --output."""
    overwrite: bool = False
    """Replace an earlier run in --output."""
    save_every: int = 1
    """Rounds between two checkpoints."""
    threads: int | None = None
    """Threads of torch [as torch decides]."""

    def check(self) -> None:
        """ValueError, naming the option, for values that cannot work."""
        lengths = ("rounds", "local_steps", "fedavg_steps", "gradient_batches", "save_every")
        for name in (*lengths, "clients", "rank", "max_rank", "batch_size", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "must be at least 1", value)
        for name in ("lr", "fedavg_lr"):
            rate = getattr(self, name)
            require(0 < rate < float("inf"), name, "must be finite and positive", rate)
        length = self.server_lr
        require(0 <= length < float("inf"), "server_lr", "must be finite and not negative", length)
        fit = LEAST_ALPHA <= self.alpha < float("inf")
        require(fit, "alpha", f"must be finite and at least {LEAST_ALPHA}", self.alpha)
        rtol, share = self.tolerance, self.participation
        require(0 <= rtol < 1, "tolerance", "must be in [0, 1)", rtol)
        require(0 < share <= 1, "participation", "must be in (0, 1]", share)
        capped = self.max_rank is None or self.rank <= self.max_rank
        require(capped, "rank", f"must be at most --max-rank {self.max_rank}", self.rank)
        check_seed(self.seed)
        self._check_compare()
        if self.resume and self.overwrite:
            raise ValueError("--resume goes on with a run and --overwrite discards it; give one")

    def _check_compare(self) -> None:
        for name in self.compare:
            if name not in OTHERS:
                raise ValueError(f"--compare must be among {', '.join(OTHERS)}, got {name}")
        twice = len({self.correction, *self.compare}) < 1 + len(self.compare)
        require(not twice, "compare", "must not name one twice", " ".join(self.compare))

    @property
    def contenders(self) -> tuple[str, ...]:
        """What is trained, in order: FeDLRT by its correction, then the others."""
        return (self.correction, *self.compare)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "output": str(self.output)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "FederateOptions":
        known = {f.name for f in fields(cls)} & values.keys()
        found: dict[str, Any] = {name: values[name] for name in known}
        found["compare"] = tuple(found["compare"])
        return cls(**{**found, "output": Path(values["output"])})
