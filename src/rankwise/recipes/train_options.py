"""What `rankwise train` can be told."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rankwise.optim.conditioning import Conditioning, ConditionLimit, NormLimit, SpreadPenalty
from rankwise.recipes.folder import require
from rankwise.recipes.seed import check_seed

DEFAULT_KEEP = 0.1
DEFAULT_LR = 0.03
DEFAULT_DECAY = 0.05
EPOCHS = {"mlp": 15, "lenet": 6, "cnn": 6, "vgg": 6, "mobile": 3, "vit": 4}
OTHER_EPOCHS = 10
CONDITIONS: dict[str, tuple[Callable[[float], Conditioning], str]] = {
    "beta": (SpreadPenalty, "must be finite and not negative"),
    "max_norm": (NormLimit, "must be finite and positive"),
    "max_condition": (ConditionLimit, "must be finite and at least 1"),
}
"""What each option does to spectra, and which values it takes."""


@dataclass(frozen=True)
class TrainOptions:
    """Train an image classifier from scratch in low rank, and its dense twin beside it.

    Without options: a perceptron on Fashion-MNIST, a tenth of its parameters, a few minutes on one
    core.
    """

    data: str = "fashion-mnist"
    """fashion-mnist, mnist, a folder of idx files, or one of train/CLASS/ and test/CLASS/."""
    model: str = "mlp"
    """mlp, lenet, cnn, vgg, mobile, vit, or package.module:factory, which returns a module."""
    keep: float | None = None
    """Share of all parameters of the network that remain in the end [0.1]."""
    tolerance: float | None = None
    """Instead of --keep: each layer keeps directions above this part of its own norm."""
    epochs: int | None = None
    """Times that each image is seen [mlp 15; lenet, cnn, vgg 6; mobile 3; vit 4; others 10]."""
    steps: int | None = None
    """Number of steps, instead of --epochs."""
    lr: float = DEFAULT_LR
    """Learning rate of the low-rank layers: relative change of a weight in a step."""
    weight_decay: float = DEFAULT_DECAY
    """Decoupled weight decay of the low-rank network."""
    beta: float | None = None
    """For robustness: pull the singular values of each low-rank layer together, this much."""
    max_norm: float | None = None
    """For robustness: no singular value of a low-rank layer above this."""
    max_condition: float | None = None
    """For robustness: no singular value above this many times the smallest of its layer."""
    adversarial: float = 0.0
    """Train on images attacked by at most this much a pixel, which are from 0 to 1."""
    adversarial_steps: int = 1
    """Gradients of that attack."""
    rate_free: bool = False
    """No learning rate and no decay: steps as long as the distance gone so far suggests."""
    batch_size: int = 128
    """Images in a step."""
    dense: bool = True
    """Train the same network with dense weights as long, to compare."""
    seed: int = 0
    """Of both starts and of the order of the data."""
    output: Path = Path("runs/train")
    """Folder of the results."""
    resume: bool = False
    """Go on with the interrupted run in --output."""
    overwrite: bool = False
    """Replace an earlier run in --output."""
    save_every: int = 500
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints that stay."""
    rewinds: int = 3
    """How often training that goes wrong may go back to its last good state before it ends."""
    threads: int | None = None
    """Threads of torch [as torch decides]."""

    def check(self) -> None:
        """ValueError, naming the option, for values that cannot work."""
        lengths = ("batch_size", "epochs", "steps", "adversarial_steps")
        for name in (*lengths, "save_every", "keep_checkpoints", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "must be at least 1", value)
        require(self.rewinds >= 0, "rewinds", "must not be negative", self.rewinds)
        check_seed(self.seed)
        require(0 < self.lr < float("inf"), "lr", "must be finite and positive", self.lr)
        require(self.keep is None or 0 < self.keep < 1, "keep", "must be in (0, 1)", self.keep)
        decay, rtol = self.weight_decay, self.tolerance
        require(0 <= decay < float("inf"), "weight_decay", "must be finite and not negative", decay)
        require(rtol is None or 0 <= rtol < 1, "tolerance", "must be in [0, 1)", rtol)
        if self.keep is not None and rtol is not None:
            raise ValueError("--keep and --tolerance are different rank rules; give one of them")
        adversarial = self.adversarial
        require(0 <= adversarial <= 1, "adversarial", "must be in [0, 1], of a pixel", adversarial)
        if adversarial == 0 and self.adversarial_steps > 1:
            raise ValueError("--adversarial-steps needs --adversarial, the size of the attack")
        given = [name for name in CONDITIONS if getattr(self, name) is not None]
        if len(given) > 1:
            names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"{names} are different ways to shape a spectrum; give one of them")
        self.conditioning()
        if self.epochs is not None and self.steps is not None:
            raise ValueError("--epochs and --steps both say how long; give one of them")
        if self.rate_free:
            for name, default in (("lr", DEFAULT_LR), ("weight_decay", DEFAULT_DECAY)):
                value = getattr(self, name)
                require(value == default, name, "and --rate-free exclude each other", value)
        if self.resume and self.overwrite:
            raise ValueError("--resume goes on with a run and --overwrite discards it; give one")

    @property
    def share(self) -> float:
        """Of the parameters that a budget keeps, and that sets the start of a tolerance."""
        return DEFAULT_KEEP if self.keep is None else self.keep

    def conditioning(self) -> Conditioning | None:
        """What is done to the spectra of the low-rank network.

        ValueError, naming the option, for a value that cannot work.
        """
        for name, (kind, rule) in CONDITIONS.items():
            value = getattr(self, name)
            if value is None:
                continue
            try:
                return kind(value)
            except ValueError:
                require(False, name, rule, value)
        return None

    def step_count(self, rows: int) -> int:
        """Steps on `rows` images; what does not fill a batch is left out of an epoch."""
        if self.steps is not None:
            return self.steps
        epochs = EPOCHS.get(self.model, OTHER_EPOCHS) if self.epochs is None else self.epochs
        return epochs * (rows // min(self.batch_size, rows))

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "output": str(self.output)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TrainOptions":
        known = {f.name for f in fields(cls)}
        values = {k: v for k, v in values.items() if k in known}
        return cls(**{**values, "output": Path(values["output"])})
