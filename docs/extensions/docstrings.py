"""Docstrings are Markdown-like; autodoc reads reStructuredText. And names have two addresses.

`text` is code, and a link where it is a public name; `*`, `_` and `|` mean themselves. A class
that a signature calls `rankwise.optim.adam.Adam` is the documented `rankwise.Adam`.
"""

import importlib
import inspect
import pkgutil
import re
from functools import cache
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.typing import stringify_annotation

import rankwise
from rankwise.surgery.select import Select

INSIDE = {"cli", "io", "numerics", "optim", "recipes", "surgery"}
CODE = re.compile(r"(``?[^`]+``?)")
SPECIAL = re.compile(r"([*|\\]|_(?=\W|$))")


@cache
def public() -> dict[str, Any]:
    """Every public object by its public address, those of `rankwise` itself last."""
    found: dict[str, Any] = {}
    spaces = [m.name for m in pkgutil.iter_modules(rankwise.__path__) if m.name not in INSIDE]
    for module in (*(importlib.import_module(f"rankwise.{name}") for name in spaces), rankwise):
        for name, value in vars(module).items():
            if not name.startswith("_") and not inspect.ismodule(value):
                found[f"{module.__name__}.{name}"] = value
    return found


@cache
def addresses() -> dict[str, str]:
    """The public address by the one where a class or function is defined, and by its bare name."""
    found = {}
    for address, value in public().items():
        if hasattr(value, "__qualname__"):
            found[f"{value.__module__}.{value.__qualname__}"] = address
            found[address.rpartition(".")[2]] = address
    return found


def marked_up(docstring: str) -> str:
    """As reStructuredText; code, which may go over two lines, stays as it is."""
    parts = CODE.split(docstring)
    parts[::2] = [SPECIAL.sub(r"\\\1", text) for text in parts[::2]]
    parts[1::2] = [_code(text.strip("`")) for text in parts[1::2]]
    return "".join(parts)


def _code(text: str) -> str:
    """As code, with a link where it is a public name or makes an object of a public class."""
    name, call, _ = text.removeprefix("rankwise.").removeprefix("rw.").partition("(")
    last = name.rpartition(".")[2]
    address = addresses().get(last, "")
    # `step` is the optimizer's more often than that of the integrators.
    plain = last.isalpha() and last.islower() and address != f"rankwise.{last}"
    if not address.endswith(f".{name}") or plain or (call and last.islower()):
        return f"``{text}``"
    return rf"\ :py:obj:`{text} <{address}>`\ "


def _process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = marked_up("\n".join(lines)).split("\n")


def _signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str
) -> tuple[str, str] | None:
    """Shorter, and Python again, for Sphinx to read it: functions and classes by their names."""
    if signature is None:
        return None
    for spelled in 2 * [stringify_annotation(Select, "smart"), stringify_annotation(Select)]:
        signature = signature.replace(spelled, "Select")  # Twice, for it holds itself.
    signature = re.sub(r"<(?:function|class) '?(?:[\w.]*\.)?(\w+)'?>", r"\1", signature)
    return re.sub(r"<[^<>]* at 0x[^<>]*>", "...", signature), returns


def _resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.Element | None:
    target = addresses().get(node.get("reftarget", ""))
    if node.get("refdomain") != "py" or target is None:
        return None
    source = node.get("refdoc", env.docname)
    return env.domains.python_domain.resolve_xref(
        env, source, app.builder, "obj", target, node, content
    )


def setup(app: Sphinx) -> dict[str, Any]:
    # Before napoleon, which writes reStructuredText of its own.
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("autodoc-process-signature", _signature)
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
