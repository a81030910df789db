"""The pages of the API have every public name, and nothing that there is not."""

import importlib
import inspect
import pkgutil
import re

import pytest

import rankwise
from pages import DOCS

INSIDE = {"cli", "io", "numerics", "optim", "recipes", "surgery"}
SPACES = [m.name for m in pkgutil.iter_modules(rankwise.__path__) if m.name not in INSIDE]
TEXT = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
SHOWN = re.findall(r"^\.\. (?:auto\w+|py:data):: (\S+)$", TEXT, re.M)


FRAMEWORK = "rankwise.integrations."
"""Each module there needs its framework, which not every environment has."""


def resolved(address: str) -> object:
    module, _, name = address.rpartition(".")
    return getattr(importlib.import_module(module), name)


def public(module: object) -> dict[str, object]:
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }


def test_every_entry_is_there_once():
    assert len(set(SHOWN)) == len(SHOWN)
    assert all(resolved(address) for address in SHOWN if not address.startswith(FRAMEWORK))


@pytest.mark.parametrize("address", [a for a in SHOWN if a.startswith(FRAMEWORK)])
def test_what_needs_a_framework_is_there(address):
    module = address.removeprefix(FRAMEWORK).partition(".")[0]
    pytest.importorskip({"flower": "flwr"}.get(module, module))
    assert resolved(address)


@pytest.mark.parametrize("space", ["", *SPACES])
def test_every_public_name_has_an_entry(space):
    module = importlib.import_module(f"rankwise.{space}".rstrip("."))
    shown = {id(resolved(address)) for address in SHOWN if not address.startswith(FRAMEWORK)}
    assert [name for name, value in public(module).items() if id(value) not in shown] == []
