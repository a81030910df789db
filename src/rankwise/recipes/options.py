"""What `rankwise finetune` can be told."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from rankwise.optim.adam import Adam
from rankwise.optim.conditioning import SpreadPenalty
from rankwise.optim.spectral import Spectral
from rankwise.optim.trust import DEFAULT_LR
from rankwise.optim.update_rule import SGD, HeavyBall, UpdateRule
from rankwise.recipes.folder import require
from rankwise.recipes.seed import check_seed

RULES: dict[str, type[UpdateRule]] = {
    "adam": Adam,
    "sgd": SGD,
    "heavy-ball": HeavyBall,
    "spectral": Spectral,
}
DEFAULT_HEAD_LR = 2e-3
BUILTIN_LENGTH = 40
FILE_LENGTH = 128
LANGUAGE_LENGTH = 256
Task = Literal["classifier", "language"]
STEPS: dict[Task, int] = {"classifier": 150, "language": 60}
BATCH: dict[Task, int] = {"classifier": 16, "language": 2}
ONLY: dict[Task, tuple[str, ...]] = {
    "classifier": ("text_column", "label_column", "head_lr"),
    "language": (
        "train_on_prompts",
        "pack",
        "sample_tokens",
        "checkpointing",
        "bfloat16",
        "quantize",
    ),
}
"""Options that only one kind of job has."""
KINDS: dict[Task, str] = {"classifier": "classifier", "language": "language model"}


@dataclass(frozen=True)
class FinetuneOptions:
    """Fine-tune a pretrained model, with ranks that find themselves.

    Labelled texts train a classifier on an encoder; texts, prompts with completions and
    conversations train a causal language model. Without options: all-MiniLM-L6-v2 on movie reviews,
    a few minutes on two cores.
    """

    model: str | None = None
    """Folder or hub name of the model [all-MiniLM-L6-v2; language model: SmolLM2-135M-Instruct]."""
    data: str | None = None
    """Labelled texts: .csv, .tsv or .jsonl; for a language model: .txt, .jsonl with messages,
    prompt and completion, or text, or the built-in king-james. Or a hub name [movie reviews]."""
    task: Task | None = None
    """What to train [seen from the data: a column of labels makes a classifier]."""
    text_column: str | None = None
    """Classifier: column of the texts [guessed from usual names]."""
    label_column: str | None = None
    """Classifier: column of the labels, strings or integers [guessed from usual names]."""
    eval_data: Path | None = None
    """File of held-out rows, instead of a part of --data."""
    eval_fraction: float = 0.1
    """Part of --data that is held out; for a language model at most 24 rows of --max-length."""
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
    """Classifier: learning rate of the new head (AdamW)."""
    rate_free: bool = False
    """No learning rates: steps as long as the distance gone so far suggests."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    beta: float | None = None
    """For robustness: pull the singular values of each low-rank layer together, this much."""
    batch_size: int | None = None
    """Rows in a step [16; language model: 2]."""
    steps: int | None = None
    """Number of steps [150; language model: 60]."""
    inputs_every: int = 1
    """To save memory: keep each layer's input for backward in one step of so many only."""
    max_length: int | None = None
    """Tokens after which a row is cut [128, of built-in reviews 40; language model: 256]."""
    train_on_prompts: bool = False
    """Language model: count the tokens of prompts too, not those of answers only."""
    pack: bool = True
    """Language model: one example a row, not several of which none attends to another."""
    sample_tokens: int = 40
    """Language model: length of the samples written before and after; 0 for none."""
    checkpointing: bool = False
    """Language model: compute activations twice and keep few, for less memory."""
    bfloat16: bool = False
    """Language model: multiply in bfloat16; factors stay float32."""
    quantize: Literal["8bit", "4bit"] | None = None
    """Language model: hold its frozen layers in int8, or in NF4 by bitsandbytes."""
    select: tuple[str, ...] = ()
    """Layers to adapt, by name or pattern [every linear map of the model's blocks]."""
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
    keep_checkpoints: int = 2
    """Newest checkpoints that stay."""
    rewinds: int = 3
    """How often training that goes wrong may go back to its last good state before it ends."""
    threads: int | None = None
    """Threads of torch [as torch decides]."""

    def check(self) -> None:
        """ValueError, naming the option, for values that cannot work."""
        for name in ("rank", "save_every", "keep_checkpoints", "inputs_every"):
            require(getattr(self, name) >= 1, name, "must be at least 1", getattr(self, name))
        for name in ("batch_size", "steps", "budget", "max_length", "threads"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "must be at least 1", value)
        require(self.rewinds >= 0, "rewinds", "must not be negative", self.rewinds)
        check_seed(self.seed)
        for name in ("lr", "head_lr", "weight_decay"):
            value = getattr(self, name)
            require(0 <= value < float("inf"), name, "must be finite and not negative", value)
        require(abs(self.scale) < float("inf"), "scale", "must be finite", self.scale)
        require(
            0 < self.eval_fraction < 1, "eval_fraction", "must be in (0, 1)", self.eval_fraction
        )
        require(self.rtol is None or 0 <= self.rtol < 1, "rtol", "must be in [0, 1)", self.rtol)
        require(self.rule in RULES, "rule", f"must be one of {', '.join(RULES)}", self.rule)
        tokens = self.sample_tokens
        require(tokens >= 0, "sample_tokens", "must not be negative", tokens)
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
        if self.inputs_every > 1 and self.rule not in ("adam", "spectral"):
            raise ValueError(
                f"--inputs-every {self.inputs_every} needs a rule that keeps a mean of gradients, "
                f"adam or spectral, and --rule is {self.rule}"
            )
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

    def for_task(self, task: Task) -> "FinetuneOptions":
        """The options of a job of this kind, with what is usual for it; ValueError for others."""
        for other, names in ONLY.items():
            for name in names if other != task else ():
                if getattr(self, name) != getattr(FinetuneOptions, name):
                    flag = name.replace("_", "-")
                    flag = "no-pack" if name == "pack" else flag
                    raise ValueError(
                        f"--{flag} is for a {KINDS[other]}; with "
                        f"{'these data' if self.data else 'the built-in reviews'} a "
                        f"{KINDS[task]} is trained"
                    )
        if task == "language" and self.data is None:
            raise ValueError("--task language needs --data; the name king-james is built in")
        told = replace(self, task=task)
        return replace(told, batch_size=told.rows, steps=told.total_steps, max_length=told.length)

    @property
    def length(self) -> int:
        """Tokens after which a text is cut."""
        if self.max_length is not None:
            return self.max_length
        if self.task == "language":
            return LANGUAGE_LENGTH
        return BUILTIN_LENGTH if self.data is None else FILE_LENGTH

    @property
    def total_steps(self) -> int:
        return STEPS[self.task or "classifier"] if self.steps is None else self.steps

    @property
    def rows(self) -> int:
        """In a step."""
        return BATCH[self.task or "classifier"] if self.batch_size is None else self.batch_size

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
