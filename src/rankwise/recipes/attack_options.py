"""What `rankwise attack` can be told."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rankwise.recipes.attacks import ATTACKS
from rankwise.recipes.folder import POSITIONAL, require
from rankwise.recipes.seed import check_seed

DEFAULT_EPOCHS = 5
DEFAULT_DATA = "fashion-mnist"
DEFAULT_NORM = 1.0
OF_TRAINING = ("epochs", "steps", "max_norm")


@dataclass(frozen=True)
class AttackSettings:
    """Attack classifiers: their accuracy under attacks, what is certified, their spectra.

    Without options: a dense perceptron, a low-rank one and a robust low-rank one, a tenth of its
    size, are trained on Fashion-MNIST and attacked side by side, in minutes.
    """

    data: str | None = None
    """Images, as for `rankwise train` [those of the runs; fashion-mnist]."""
    attacks: tuple[str, ...] = ("fgsm", "pgd")
    """Of fgsm, scaled-fgsm, pgd, jitter, mixup, noise, auto (l_inf); fgsm-l2, pgd-l2, noise-l2."""
    eps: tuple[float, ...] = (0.01, 0.02, 0.05)
    """Largest change of a pixel, which are from 0 to 1."""
    eps_l2: tuple[float, ...] = (0.25, 0.5, 1.0)
    """Largest l2 norm of the change of an image of such pixels; also for certificates."""
    surrogate: str | None = None
    """Make adversarial images on the model of this name, and show them to all [on each itself]."""
    trust_code: bool = False
    """Import networks of your own that run folders name by import path: their code runs."""
    rows: int = 1000
    """Test images that are attacked, the first ones."""
    epochs: int | None = None
    """Without subjects: times that each image is seen in training [5]."""
    steps: int | None = None
    """Without subjects: number of training steps, instead of --epochs."""
    max_norm: float | None = None
    """Without subjects: largest singular value of the robust network's layers [1]."""
    seed: int = 0
    """Of training and of the attacks' random numbers."""
    output: Path = Path("runs/attack")
    """Folder of the results."""
    resume: bool = False
    """Go on with the interrupted run in --output."""
    overwrite: bool = False
    """Replace an earlier run in --output."""
    save_every: int = 500
    """Without subjects: steps between two checkpoints."""
    keep_checkpoints: int = 2
    """Without subjects: newest checkpoints that stay."""
    threads: int | None = None
    """Threads of torch [as torch decides]."""

    def check(self) -> None:
        """ValueError, naming the option, for values that cannot work."""
        for name in ("rows", "epochs", "steps", "save_every", "keep_checkpoints", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "must be at least 1", value)
        unknown = [name for name in self.attacks if name not in ATTACKS]
        if unknown or not self.attacks:
            got = unknown[0] if unknown else "none"
            raise ValueError(f"--attacks must be among {', '.join(ATTACKS)}, got {got}")
        twice = len(set(self.attacks)) < len(self.attacks)
        require(not twice, "attacks", "must not name one twice", " ".join(self.attacks))
        _check_budgets("eps", self.eps, 1.0, "must be numbers in (0, 1], of a pixel")
        _check_budgets("eps_l2", self.eps_l2, float("inf"), "must be finite positive numbers")
        norm = self.max_norm
        finite = norm is None or 0 < norm < float("inf")
        require(finite, "max_norm", "must be finite and positive", norm)
        check_seed(self.seed)
        if self.epochs is not None and self.steps is not None:
            raise ValueError("--epochs and --steps both say how long; give one of them")
        if self.resume and self.overwrite:
            raise ValueError("--resume goes on with a run and --overwrite discards it; give one")


@dataclass(frozen=True)
class AttackOptions(AttackSettings):
    """Settings, and what is attacked."""

    subjects: tuple[str, ...] = field(default=(), metadata=POSITIONAL)
    """Run folders of `rankwise train`, or package.module:factory that returns a trained module."""

    def check(self) -> None:
        """ValueError, naming the option, for values that cannot work."""
        super().check()
        for name in OF_TRAINING if self.subjects else ():
            value, rule = getattr(self, name), "is for training without subjects; leave it out"
            require(value is None, name, rule, value)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "output": str(self.output)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "AttackOptions":
        known = {f.name for f in fields(cls)} & values.keys()
        found: dict[str, Any] = {name: values[name] for name in known}
        for name, value in found.items():
            found[name] = tuple(value) if isinstance(value, list) else value
        return cls(**{**found, "output": Path(values["output"])})


def _check_budgets(name: str, budgets: Sequence[float], most: float, rule: str) -> None:
    fit = bool(budgets) and all(0 < eps <= most and eps < float("inf") for eps in budgets)
    require(fit, name, rule, " ".join(map(str, budgets)) or "none")
