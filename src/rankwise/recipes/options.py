"""What `rankwise finetune` can be told."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from rankwise.optim.adam import Adam
from rankwise.optim.conditioning import SpreadPenalty
from rankwise.optim.spectral import Spectral
from rankwise.optim.trust import DEFAULT_LR
from rankwise.optim.update_rule import SGD, HeavyBall, UpdateRule
from rankwise.recipes.folder import require

RULES: dict[str, type[UpdateRule]] = {
    "adam": Adam,
    "sgd": SGD,
    "heavy-ball": HeavyBall,
    "spectral": Spectral,
}
DEFAULT_HEAD_LR = 2e-3
BUILTIN_LENGTH = 40
FILE_LENGTH = 128


@dataclass(frozen=True)
class FinetuneOptions:
    """Fine-tune a pretrained encoder on labelled texts, with ranks that find themselves.

    Without options: all-MiniLM-L6-v2 on movie reviews, a few minutes on two cores.
    """

    model: str | None = None
    """Folder or hub name of the encoder [built-in: all-MiniLM-L6-v2]."""
    data: str | None = None
    """A .csv, .tsv or .jsonl file, or a hub name [built-in: movie reviews]."""
    text_column: str | None = None
    """Column of the texts [guessed from usual names]."""
    label_column: str | None = None
    """Column of the labels, strings or integers [guessed from usual names]."""
    eval_data: Path | None = None
    """File of held-out rows, instead of a part of --data."""
    eval_fraction: float = 0.1
    """Part of --data that is held out."""
    rank: int = 8
    """Rank of every layer at the start."""
    budget: int | None = None
    """Parameters of all adapters together in the end [those of half the starting rank]."""
    rtol: float | None = None
    """Instead of a budget: each layer keeps directions above this part of its own norm."""
    fixed_rank: bool = False
    """Instead of a budget: keep the starting rank."""
    rule: Literal["adam", "sgd", "heavy-ball", "spectral"] = "adam"
    """Update rule of the adapters."""
    lr: float = DEFAULT_LR
    """Learning rate of the adapters: relative change of a weight in a step (sgd: a plain rate)."""
    head_lr: float = DEFAULT_HEAD_LR
    """Learning rate of the new head (AdamW)."""
    rate_free: bool = False
    """No learning rates: steps as long as the distance gone so far suggests."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    beta: float | None = None
    """For robustness: pull the singular values of each low-rank layer together, this much."""
    batch_size: int = 16
    """Rows in a step."""
    steps: int = 150
    """Number of steps."""
    max_length: int | None = None
    """Tokens after which a text is cut [40 for the built-in reviews, else 128]."""
    select: tuple[str, ...] = ()
    """Layers to adapt, by name or pattern [every linear map of the encoder's blocks]."""
    scale: float = 1.0
    """Factor of the low-rank part."""
    seed: int = 0
    """Of the split, the order of the data, the head, the adapters and dropout."""
    output: Path = Path("runs/finetune")
    """Folder of the results."""
    resume: bool = False
    """Go on with the interrupted run in --output."""
    overwrite: bool = False
    """Replace an earlier run in --output."""
    save_every: int = 50
    """Steps between two checkpoints."""
    threads: int | None = None
    """Threads of torch [as torch decides]."""

    def check(self) -> None:
        """ValueError, naming the option, for values that cannot work."""
        for name in ("rank", "batch_size", "steps", "save_every"):
            require(getattr(self, name) >= 1, name, "must be at least 1", getattr(self, name))
        for name in ("budget", "max_length", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "must be at least 1", value)
        for name in ("lr", "head_lr", "weight_decay"):
            value = getattr(self, name)
            require(0 <= value < float("inf"), name, "must be finite and not negative", value)
        require(
            0 < self.eval_fraction < 1, "eval_fraction", "must be in (0, 1)", self.eval_fraction
        )
        require(self.rtol is None or 0 <= self.rtol < 1, "rtol", "must be in [0, 1)", self.rtol)
        require(self.rule in RULES, "rule", f"must be one of {', '.join(RULES)}", self.rule)
        given = [
            name
            for name, there in (
                ("--budget", self.budget is not None),
                ("--rtol", self.rtol is not None),
                ("--fixed-rank", self.fixed_rank),
            )
            if there
        ]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are different rank rules; give one of them")
        self.conditioning()
        if self.rate_free:
            for name, default in (("lr", DEFAULT_LR), ("head_lr", DEFAULT_HEAD_LR)):
                value = getattr(self, name)
                require(value == default, name, "and --rate-free exclude each other", value)
            require(not self.weight_decay, "weight_decay", "needs a rate", self.weight_decay)
        if self.resume and self.overwrite:
            raise ValueError("--resume goes on with a run and --overwrite discards it; give one")
        if self.data is None:
            for name in ("text_column", "label_column", "eval_data"):
                require(getattr(self, name) is None, name, "needs --data", getattr(self, name))

    @property
    def length(self) -> int:
        """Tokens after which a text is cut."""
        if self.max_length is not None:
            return self.max_length
        return BUILTIN_LENGTH if self.data is None else FILE_LENGTH

    def conditioning(self) -> SpreadPenalty | None:
        """What is done to the spectra of the adapters."""
        return None if self.beta is None else SpreadPenalty(self.beta)

    def update_rule(self) -> UpdateRule:
        return RULES[self.rule]()

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()} | {
            "select": list(self.select)
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "FinetuneOptions":
        known = {f.name for f in fields(cls)}
        values = {k: v for k, v in values.items() if k in known}
        values["output"] = Path(values["output"])
        values["select"] = tuple(values["select"])
        if values["eval_data"] is not None:
            values["eval_data"] = Path(values["eval_data"])
        return cls(**values)
