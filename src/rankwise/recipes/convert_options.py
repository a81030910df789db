"""What `rankwise convert` can be told."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rankwise.recipes.folder import POSITIONAL, require

DEFAULT_SOURCE = Path("runs/finetune/lora")
DEFAULT_OUTPUT = Path("runs/convert")


@dataclass(frozen=True)
class ConvertSettings:
    """Make an adapter smaller, or another format of it; the base model is not needed.

    Without options: the LoRA of `rankwise finetune`, its layers and ranks told.
    """

    max_rank: int | None = None
    """Cut every layer to this rank [none is cut]."""
    tolerance: float | None = None
    """Cut every layer as far as its relative error stays within this [none is cut]."""
    adapter: bool = False
    """Write rankwise's adapter.safetensors instead of a LoRA; so does an OUT in .safetensors."""
    compact: bool = False
    """A LoRA of exact ranks with rank_pattern, which fewer programs read, instead of padding."""
    prefix: str = ""
    """Leave out this first part of the layers' names, such as encoder."""
    overwrite: bool = False
    """Replace an earlier result in OUT."""


@dataclass(frozen=True)
class ConvertOptions(ConvertSettings):
    """All of it."""

    source: Path = field(default=DEFAULT_SOURCE, metadata=POSITIONAL)
    output: Path = field(default=DEFAULT_OUTPUT, metadata=POSITIONAL)

    @property
    def to_adapter(self) -> bool:
        return self.adapter or self.output.suffix == ".safetensors"

    def check(self) -> None:
        """ValueError, naming the option, for values that cannot work."""
        require(
            self.max_rank is None or self.max_rank >= 1,
            "max_rank",
            "must be at least 1",
            self.max_rank,
        )
        require(
            self.tolerance is None or 0 <= self.tolerance < 1,
            "tolerance",
            "must be in [0, 1)",
            self.tolerance,
        )
        if self.compact and self.to_adapter:
            raise ValueError("--compact is a layout of a LoRA; an adapter of rankwise's has none")
        if self.prefix and self.to_adapter:
            raise ValueError(
                "--prefix is for a LoRA; `rankwise.load(model, file, prefix=...)` puts an adapter "
                "into a part of a model"
            )

    def to_json(self) -> dict[str, Any]:
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
