"""A link that reads `[choosing.md](choosing.md)` on a code host shows the page's title here."""

from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx


def _retitle(app: Sphinx, document: nodes.document) -> None:
    for link in document.findall(pending_xref):
        if link.get("refdomain") == "doc" and link.astext().endswith((".md", ".ipynb")):
            link.clear()
            link["refexplicit"] = False


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-read", _retitle)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
