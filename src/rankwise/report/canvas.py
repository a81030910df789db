"""Where pictures are drawn, and how they are written."""

from pathlib import Path
from typing import Any

from rankwise.io.atomic import replacing

INSTALL = 'pip install "rankwise[finetune]"'


def canvas(width: float, height: float, *, dpi: int = 120) -> Any:
    """An empty figure of matplotlib's, in inches; ImportError that names the extra without it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"pictures need matplotlib: {INSTALL}") from error
    return Figure(figsize=(width, height), layout="constrained", dpi=dpi)


def write_png(figure: Any, path: str | Path) -> None:
    """Write it, atomically."""
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, format="png")
