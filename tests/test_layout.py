"""The house: who may import whom, how long a file may be, and which names are too vague for one."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "rankwise"
ORDER = (
    "numerics nn distributed integrators optim check cost surgery compress robust io adapters "
    "federated report integrations recipes cli"
).split()
CORE = ORDER[:13]
CORE_NEEDS = {"torch", "safetensors"}
FRAMEWORKS = {"transformers": "transformers", "lightning": "lightning", "flower": "flwr"}
"""What `integrations` holds, and the package that each of them may need on import."""
MAX_LINES = 500
VAGUE = ("util", "helper", "manager", "misc", "common")
FILES = sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """The subpackage that a file belongs to, "" for the public door."""
    inside = path.relative_to(PACKAGE).parts
    return inside[0] if len(inside) > 1 else ""


def imported(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and full name of every module that is imported anywhere below `tree`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            found.append((node.lineno, node.module or ""))
            if node.module == "rankwise":
                found += [(node.lineno, f"rankwise.{alias.name}") for alias in node.names]
    return found


def at_module_level(tree: ast.Module) -> ast.Module:
    """The statements that run when the module is imported, those for type checkers left out."""

    class Prune(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return None

        visit_AsyncFunctionDef = visit_FunctionDef

        def visit_If(self, node):
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    return Prune().visit(tree)


def wrong_edges(path: Path, source: str) -> list[str]:
    """Imports of `source`, as the content of `path`, that point against the order."""
    own = part(path)
    if not own:
        return []
    allowed = set(ORDER[: ORDER.index(own) + 1])
    edges = []
    for line, name in imported(ast.parse(source)):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if top == "rankwise" and target not in allowed:
            edges.append(f"{path.name}:{line}: {own} imports {name}")
    return edges


def outside(source: str) -> set[str]:
    """Packages that `source` needs on import, beside the standard library and rankwise."""
    names = {name.partition(".")[0] for _, name in imported(at_module_level(ast.parse(source)))}
    return names - set(sys.stdlib_module_names) - {"rankwise"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way_only(path):
    assert wrong_edges(path, path.read_text()) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_is_optional_is_never_needed_on_import(path):
    framework = "torch"
    if part(path) == "integrations":
        inside = path.relative_to(PACKAGE / "integrations").parts[0].removesuffix(".py")
        framework = FRAMEWORKS.get(inside, "torch")
    assert outside(path.read_text()) <= CORE_NEEDS | {framework}


@pytest.mark.parametrize(
    "source, edges",
    [
        ("from rankwise.optim.adam import Adam", 1),
        ("import rankwise.nn.linear", 1),
        ("from rankwise import Optimizer", 2),
        ("def f():\n    from rankwise.io.checkpoint import save", 1),
        ("import torch\nfrom rankwise.numerics.orth import augment", 0),
    ],
)
def test_a_wrong_edge_is_found(source, edges):
    assert len(wrong_edges(PACKAGE / "numerics" / "new.py", source)) == edges


@pytest.mark.parametrize(
    "source, needed",
    [
        ("import transformers.utils", {"transformers"}),
        ("try:\n    from rich import print\nexcept ImportError:\n    pass", {"rich"}),
        ("class A:\n    import peft", {"peft"}),
        ("def f():\n    import peft", set()),
        ("if TYPE_CHECKING:\n    import peft", set()),
        ("import os, torch", {"torch"}),
    ],
)
def test_an_optional_import_is_found(source, needed):
    assert outside(source) == needed


def test_every_folder_has_its_place_in_the_order():
    folders = {part(path) for path in FILES} - {""}
    assert folders <= set(ORDER)
    assert folders >= set(CORE)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_short_and_named_for_what_they_do(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES
    assert not any(word in path.stem for word in VAGUE)


def test_names_say_more_than_helper_or_manager():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                name = node.name.lower()
                assert not any(word in name for word in VAGUE), f"{path.name}: {node.name}"


def test_importing_rankwise_loads_nothing_optional_and_changes_no_setting():
    code = """
import os, sys, torch
def settings():
    state = torch.random.get_rng_state().sum()
    return dict(os.environ), torch.get_num_threads(), torch.get_default_dtype(), state
before, loaded = settings(), set(sys.modules)
import rankwise
assert settings() == before
new = {name.partition(".")[0] for name in set(sys.modules) - loaded}
# It is a part of what the rest takes to import, and few need it.
assert "rankwise.federated" not in sys.modules and rankwise.federated.FedAvg
print(*sorted(new - set(sys.stdlib_module_names) - {"rankwise", "torch", "safetensors"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
