"""Links lead somewhere: files that are there, headings that a page has, tests that exist."""

import re
from pathlib import Path

import pytest

from pages import DOCS, INLINE, PAGES, ROOT, name_of, prose

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Of the headings, as code hosts and MyST make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.M):
        text = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        assert text not in found, f"{page}: two headings are {heading!r}; links would be unclear"
        found.add(text)
    return found


def links(page: Path) -> list[str]:
    return [link for link in LINK.findall(prose(page)) if not link.startswith("http")]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_pictures_are_there(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{link}: there is no such file"
        if anchor:
            assert anchor in anchors(target), f"{link}: that page has {sorted(anchors(target))}"


def test_every_page_is_in_a_table_of_contents():
    entries = set()
    for page in DOCS.rglob("*.md"):
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.S):
            names = [line for line in tree.splitlines() if line and not line.startswith(":")]
            entries |= {(page.parent / name).resolve() for name in names}
    pages = {path.with_suffix("") for path in DOCS.rglob("*.md")} - {DOCS / "index"}
    assert pages <= entries


@pytest.mark.parametrize("page", [DOCS / "works.md"], ids=name_of)
def test_the_tests_that_a_page_names_exist(page):
    named = [word for word in INLINE.findall(prose(page)) if word.startswith("tests/")]
    assert named
    assert [word for word in named if not (ROOT / word).exists()] == []
