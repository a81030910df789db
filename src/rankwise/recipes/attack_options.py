"""What `rankwise attack` can be told."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from rankwise.recipes.attacks import ATTACKS
from rankwise.recipes.folder import require

DEFAULT_EPOCHS = 5
DEFAULT_DATA = "fashion-mnist"


def _positional() -> Any:
    """How tyro is told, without the need for it."""
    try:
        from tyro.conf import Positional
    except ImportError:
        return None
    return Positional


@dataclass(frozen=True)
class AttackOptions:
    """Attack classifiers: their accuracy under attacks, what is certified, their spectra.

    Without options: a dense perceptron, a low-rank one and a robust low-rank one, a tenth of its
    size, are trained on Fashion-MNIST and attacked side by side, in minutes.
    """

    subjects: Annotated[tuple[str, ...], _positional()] = ()
    """Run folders of `rankwise train`, or package.module:factory that returns a trained module."""
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
    rows: int = 1000
    """Test images that are attacked, the first ones."""
    epochs: int = DEFAULT_EPOCHS
    """Without subjects: times that each image is seen in training."""
    steps: int | None = None
    """Without subjects: number of training steps, instead of --epochs."""
    max_norm: float = 1.0
    """Without subjects: largest singular value of the robust network's layers."""
    seed: int = 0
    """Of training and of the attacks' random numbers."""
    output: Path = Path("runs/attack")
    """Folder of the results."""
    resume: bool = False
    """Go on with the interrupted run in --output."""
    overwrite: bool = False
    """Replace an earlier run in --output."""
    save_every: int = 500
    """Steps between two checkpoints."""
    threads: int | None = None
    """Threads of torch [as torch decides]."""

    def check(self) -> None:
        """ValueError, naming the option, for values that cannot work."""
        for name in ("rows", "epochs", "steps", "save_every", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "must be at least 1", value)
        unknown = [name for name in self.attacks if name not in ATTACKS]
        if unknown or not self.attacks:
            got = unknown[0] if unknown else "none"
            raise ValueError(f"--attacks must be among {', '.join(ATTACKS)}, got {got}")
        for name in ("eps", "eps_l2"):
            value = getattr(self, name)
            least = all(0 < e < float("inf") for e in value) and value
            require(bool(least), name, "must be finite positive numbers", value)
        require(max(self.eps) <= 1, "eps", "is of a pixel in [0, 1]", max(self.eps))
        require(0 < self.max_norm < float("inf"), "max_norm", "must be positive", self.max_norm)
        require(self.seed >= 0, "seed", "must not be negative", self.seed)
        if self.resume and self.overwrite:
            raise ValueError("--resume goes on with a run and --overwrite discards it; give one")

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "output": str(self.output)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "AttackOptions":
        known = {f.name for f in fields(cls)} & values.keys()
        found: dict[str, Any] = {name: values[name] for name in known}
        for name, value in found.items():
            found[name] = tuple(value) if isinstance(value, list) else value
        return cls(**{**found, "output": Path(values["output"])})
