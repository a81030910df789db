"""Elements of SVG and HTML, escaped at this one place."""

from collections.abc import Iterable
from html import escape
from math import isfinite, nan


class Markup(str):
    """Text that is markup already: jinja2 asks for `__html__` and does not escape it again."""

    def __html__(self) -> str:
        return str(self)


def tag(name: str, *content: str, **attributes: str | float) -> Markup:
    """An element; `content` that is no Markup and all attributes are escaped.

    Names of attributes: `class_` is class, `_` is a hyphen.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{written}>{joined(content)}</{name}>")


def joined(parts: Iterable[str]) -> Markup:
    return Markup("".join(p if isinstance(p, Markup) else escape(p) for p in parts))


def with_code(text: str) -> Markup:
    """What stands between backticks becomes code."""
    return joined(tag("code", p) if i % 2 else p for i, p in enumerate(text.split("`")))


def number(value: float) -> str:
    """A coordinate, to a tenth."""
    return f"{value:.1f}".removesuffix(".0")


def line(points: Iterable[tuple[float, float]], *, steps: bool = False) -> str:
    """The `d` of a path through points, with a gap where one is not finite.

    A point with a gap on both sides is a dot where lines have round caps.
    """
    parts: list[str] = []
    run = 0
    for x, y in [*points, (nan, nan)]:
        if not isfinite(y):
            parts += ["h0"] if run == 1 else []
            run = 0
            continue
        if not run:
            parts.append(f"M{number(x)} {number(y)}")
        elif steps:
            parts.append(f"H{number(x)}V{number(y)}")
        else:
            parts.append(f"L{number(x)} {number(y)}")
        run += 1
    return "".join(parts)


def box(x: float, y: float, width: float, height: float) -> str:
    """The part of a `d` that is a filled rectangle."""
    return f"M{number(x)} {number(y)}h{number(width)}v{number(height)}h{number(-width)}z"
