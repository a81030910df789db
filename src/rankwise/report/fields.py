"""What the files of a run may say, field by field.

Others may have written them, or a disk may have cut them. What a file does not say is nobody's
fault; what it says must be of the kind that is written there.
"""

from collections.abc import Callable, Mapping
from math import isfinite, isinf, isnan
from typing import Any, NamedTuple

from rankwise.io.json_object import short
from rankwise.optim.guard import Incidents

Holds = Callable[[Any], bool]
MOST = 1e150
"""Of a number: squares and differences of such ones are still finite."""
MOST_COUNT = 2**53


class Field(NamedTuple):
    """What a value must be, as a test and in words."""

    holds: Holds
    rule: str


def check_fields(where: str, found: Any, fields: Mapping[str, Field]) -> None:
    """ValueError that names `where`, the field and the rule, for the first that breaks it."""
    if not isinstance(found, dict):
        raise ValueError(f"{where} is damaged: an object is needed, got {short(found)}")
    for name, field in fields.items():
        if name in found and not field.holds(found[name]):
            raise ValueError(
                f"{where} is damaged: {name!r} must be {field.rule}, got {short(found[name])}"
            )


def number(value: Any) -> bool:
    """A number, NaN and infinity too, none absurdly large."""
    if type(value) not in (int, float):
        return False
    return isinstance(value, float) and (isnan(value) or isinf(value)) or -MOST <= value <= MOST


def amount(value: Any) -> bool:
    return number(value) and isfinite(value) and value >= 0


def count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST_COUNT


def text(value: Any) -> bool:
    return isinstance(value, str)


def maybe(holds: Holds) -> Holds:
    return lambda value: value is None or holds(value)


def each(holds: Holds, *, least: int = 0) -> Holds:
    """A list of them, at least so many."""
    return lambda value: isinstance(value, list) and len(value) >= least and all(map(holds, value))


def mapped(holds: Holds, *, least: int = 0) -> Holds:
    """An object with such values."""
    return lambda value: (
        isinstance(value, dict) and len(value) >= least and all(map(holds, value.values()))
    )


def having(required: Mapping[str, Holds]) -> Holds:
    """An object with at least these entries."""
    return lambda value: (
        isinstance(value, dict) and all(k in value and v(value[k]) for k, v in required.items())
    )


def _rank(value: Any) -> bool:
    return count(value) or each(count, least=1)(value)


def _pair(value: Any) -> bool:
    """The size of an attack, and an accuracy."""
    return each(number)(value) and len(value) == 2 and isfinite(value[0])


NUMBER = Field(maybe(number), "a number or null")
AMOUNT = Field(amount, "a number of at least 0")
COUNT = Field(count, "a whole number of at least 0")

CURVE: Mapping[str, Field] = {
    "step": Field(lambda value: count(value) and value >= 1, "a whole number of at least 1"),
    "loss": NUMBER,
    "lr": NUMBER,
    "gradient_norm": NUMBER,
    "mean_rank": NUMBER,
    "skipped": COUNT,
    "incidents": Field(
        lambda value: mapped(count)(value) and value.keys() <= set(Incidents._fields),
        f"counts of {', '.join(Incidents._fields)}",
    ),
}
"""Of a step, in a record of any kind."""

LINE: Mapping[str, Field] = {
    **CURVE,
    "parameters": AMOUNT,
    "seconds": AMOUNT,
    "memory": AMOUNT,
    "peak_memory": AMOUNT,
    "bytes_per_step": AMOUNT,
    "ranks": Field(each(_rank), "a list of ranks"),
    "condition": Field(mapped(maybe(number)), "numbers by names of layers"),
    "spectra": Field(each(each(amount, least=1)), "a list of lists of singular values"),
}
"""Of a step in `history.jsonl`."""

_LAYER = having(
    {
        "name": text,
        "shape": each(count),
        "kernel": maybe(each(count)),
        "full": each(lambda value: count(value) and value >= 1, least=1),
    }
)

ABOUT: Mapping[str, Field] = {
    "layers": Field(maybe(each(_LAYER)), "a list of layers with name, shape, kernel and full"),
    "optimizer": Field(mapped(maybe(text)), "texts by the names of parts"),
    "groups": Field(each(having({"weight_decay": number})), "a list with weight_decay"),
    "versions": Field(mapped(maybe(text)), "texts by names of packages"),
    "machine": Field(lambda value: isinstance(value, dict), "an object"),
    "started": Field(text, "a text"),
}
"""Of `run.json`."""

ANY_METRICS: Mapping[str, Field] = {"versions": ABOUT["versions"]}
"""Of the `metrics.json` of any command."""

_ATTACKED = having(
    {
        "accuracy": number,
        "attacks": mapped(each(_pair, least=1), least=1),
    }
)

ATTACK: Mapping[str, Field] = {
    **ANY_METRICS,
    "models": Field(
        lambda value: (
            mapped(_ATTACKED)(value)
            and all(maybe(each(_pair))(model.get("certified")) for model in value.values())
        ),
        "accuracies of models under attacks",
    ),
}
"""Of the `metrics.json` of `rankwise attack`."""

ATTACK_OPTIONS: Mapping[str, Field] = {"attacks": Field(each(text), "a list of names")}
