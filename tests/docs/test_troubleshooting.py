"""The page of troubles has every check that there is, and no other."""

import ast
import re

from pages import DOCS, ROOT

PAGE = (DOCS / "troubleshooting.md").read_text()
SOURCES = [*(ROOT / "src" / "rankwise" / "check").glob("*.py")]
SOURCES += (ROOT / "src" / "rankwise" / "recipes").glob("*.py")
MAKERS = {"fine", "warning", "fault"}


def checks(source: str) -> set[str]:
    """Names of the findings that functions of `source` make: constants, or their `name`."""
    found: set[str] = set()
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef):
            first = [call.args[0] for call in ast.walk(function) if makes_finding(call)]
            found |= {a.value for a in first if isinstance(a, ast.Constant)}
            if any(isinstance(a, ast.Name) and a.id == "name" for a in first):
                found |= names_in(function)
    return found


def makes_finding(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MAKERS
        and bool(node.args)
    )  # fmt: skip


def names_in(function: ast.FunctionDef) -> set[str]:
    """The constants that `name` is given, also beside others and as a default; of an f-string, its
    start."""
    found: list[ast.AST] = []
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            (target,) = node.targets
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            found += [v for t, v in pairs if isinstance(t, ast.Name) and t.id == "name"]
    arguments = function.args.args[-len(function.args.defaults) or len(function.args.args) :]
    found += [d for a, d in zip(arguments, function.args.defaults, strict=True) if a.arg == "name"]
    constants = [v.values[0] if isinstance(v, ast.JoinedStr) else v for v in found]
    return {str(v.value).strip() for v in constants if isinstance(v, ast.Constant)}


ALL = set().union(*(checks(path.read_text()) for path in SOURCES))


def test_checks_are_found_in_their_sources():
    assert {"base", "files", "falling loss", "skipped steps", "python", "extra"} <= ALL
    assert len(ALL) > 25


def test_the_page_has_a_heading_for_each_and_for_nothing_else():
    assert set(re.findall("^### (.*)$", PAGE, re.M)) == ALL


def test_it_says_of_each_what_it_is():
    sections = re.split("^### ", PAGE, flags=re.M)[1:]
    assert all(re.match(r"[\w ]+\n\n\*", section) for section in sections)
