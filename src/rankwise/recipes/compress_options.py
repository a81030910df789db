"""What `rankwise compress` can be told."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rankwise.recipes.folder import require

DEFAULT_KEEP = 0.7


@dataclass(frozen=True)
class CompressOptions:
    """Compress a trained network, heal it, and leave it as plain PyTorch.

    Without options: the sentence encoder all-MiniLM-L6-v2 on movie reviews, a few minutes on one
    core.
    """

    model: str | None = None
    """Folder or hub name of an encoder or a causal language model; or, with --weights, an image
    classifier: mlp, lenet, cnn, vgg, mobile, vit or package.module:factory [all-MiniLM-L6-v2]."""
    weights: Path | None = None
    """Safetensors file of an image classifier's trained weights."""
    data: str | None = None
    """Texts, one a line (.txt), like those that the model is for; of an image classifier its
    images, as `rankwise train --data` takes them [movie reviews; fashion-mnist]."""
    keep: float | None = None
    """Share of the parameters of all layers that can be low rank which is kept [0.7]."""
    tolerance: float | None = None
    """Instead of --keep: by what part the loss may rise before healing; the least share is kept
    that stays within it."""
    products: bool = False
    """Let --keep and --tolerance share out multiplications instead of parameters."""
    plain: bool = False
    """Truncated SVD at one share for all layers, as scripts do it."""
    select: tuple[str, ...] = ()
    """Layers to compress, by name or pattern [all but embeddings and heads]."""
    calibration: int = 256
    """Rows (texts, passages, images) that say which directions matter."""
    heal_steps: int = 150
    """Steps of training the factors afterwards; 0 for none."""
    distill: float | None = None
    """Weight of what the original says beside the data's own labels while healing, in [0, 1]
    [0.5; an encoder has no labels]."""
    lr: float = 1e-3
    """Learning rate of the factors: relative change of a weight in a step."""
    batch_size: int = 16
    """Rows in a step."""
    max_length: int | None = None
    """Tokens after which a text is cut [40 for the built-in reviews, else 128]."""
    curve: bool = True
    """Measure the loss over compression, plain and calibrated."""
    seed: int = 0
    """Of the rows for calibration and the order of the data."""
    output: Path = Path("runs/compress")
    """Folder of the results."""
    resume: bool = False
    """Go on with the interrupted run in --output."""
    overwrite: bool = False
    """Replace an earlier run in --output."""
    save_every: int = 50
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints that stay."""
    rewinds: int = 3
    """How often healing that goes wrong may go back to its last good state before it ends."""
    threads: int | None = None
    """Threads of torch [as torch decides]."""

    def check(self) -> None:
        """ValueError, naming the option, for values that cannot work."""
        for name in (
            "calibration",
            "batch_size",
            "max_length",
            "save_every",
            "keep_checkpoints",
            "threads",
        ):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "must be at least 1", value)
        for name in ("heal_steps", "rewinds"):
            require(getattr(self, name) >= 0, name, "must not be negative", getattr(self, name))
        require(0 < self.lr < float("inf"), "lr", "must be finite and positive", self.lr)
        require(self.keep is None or 0 < self.keep < 1, "keep", "must be in (0, 1)", self.keep)
        rise, weight = self.tolerance, self.distill
        require(rise is None or 0 < rise < float("inf"), "tolerance", "must be positive", rise)
        require(weight is None or 0 <= weight <= 1, "distill", "must be in [0, 1]", weight)
        if self.keep is not None and rise is not None:
            raise ValueError("--keep and --tolerance both say how much; give one of them")
        if self.plain and self.products:
            raise ValueError("--plain cuts all layers alike and shares nothing out: no --products")
        if self.resume and self.overwrite:
            raise ValueError("--resume goes on with a run and --overwrite discards it; give one")

    @property
    def share(self) -> float:
        return DEFAULT_KEEP if self.keep is None else self.keep

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()} | {
            "select": list(self.select)
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "CompressOptions":
        known = {f.name for f in fields(cls)}
        values = {k: v for k, v in values.items() if k in known}
        values["output"] = Path(values["output"])
        values["select"] = tuple(values["select"])
        if values["weights"] is not None:
            values["weights"] = Path(values["weights"])
        return cls(**values)
