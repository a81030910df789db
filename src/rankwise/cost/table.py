"""Costs of a training step as text."""

from collections.abc import Mapping, Sequence
from typing import Any

SECONDS = ("forward", "backward", "optimizer", "seconds")
BYTES = ("weights", "gradients", "state", "saved", "peak")


def table(rows: Mapping[str, Any]) -> list[str]:
    """A line for each step."""
    header = _line("a step", ["forward", "backward", "optimizer", "ms", *BYTES[:-1], "peak MiB"])
    return [header, *(_line(name, _cells(cost)) for name, cost in rows.items())]


def _cells(cost: Any) -> list[str]:
    return [
        *(_milliseconds(getattr(cost, name)) for name in SECONDS),
        *(f"{getattr(cost, name) / 2**20:,.1f}" for name in BYTES),
    ]


def _line(name: str, cells: Sequence[str]) -> str:
    return f"{name:<{len('low rank')}}" + "".join(f"{cell:>11}" for cell in cells)


def sentence(rows: Mapping[str, Any], products: float) -> str:
    """Where low rank pays, and where it cannot."""
    own, frozen, lora, full = (rows[name] for name in ("low rank", "frozen", "LoRA", "full"))
    over = own.seconds / frozen.seconds - 1
    return (
        f"Adapters cost {over:.0%} over the frozen model, whose products take "
        f"{products / own.seconds:.0%} of the step. Full fine-tuning: "
        f"{_ratio(own.seconds, full.seconds)} of its time, {_ratio(own.peak, full.peak)} of its "
        f"memory. LoRA: {_ratio(own.seconds, lora.seconds)} and {_ratio(own.peak, lora.peak)}."
    )


def _ratio(one: float, other: float) -> str:
    return f"{one / other:.2f}"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.3g}" if seconds < 0.1 else f"{1e3 * seconds:,.0f}"
