"""How the pages are built: `make docs`, from nothing but these files and the package."""

import sys
from importlib.util import find_spec
from pathlib import Path

import rankwise

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "rankwise"
author = "the rankwise authors"
project_copyright = "the rankwise authors"
release = version = rankwise.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "command_line",
    "docstrings",
    "mathml",
    "notebook",
    "titles",
]
exclude_patterns = ["extensions"]

# The pages are read on code hosts too, which know ```math, but no directive.
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3
highlight_language = "text"

# Of what is not installed here, its classes are documented all the same.
autodoc_mock_imports = [name for name in ("lightning",) if find_spec(name) is None]
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_use_legacy_class_based = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
python_display_short_literal_types = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
add_module_names = False
toc_object_entries_show_parents = "hide"

nitpicky = True
# Other packages' pages are not at hand offline, and types of the inside have no page.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(torch|os|re|collections|typing|pathlib|enum|weakref|dataclasses|safetensors|flwr)(\..*)?",
    ),
    ("py:.*", r"rankwise\.(\w+\.)+_?\w+"),
    ("py:.*", "Select|Module|Rule"),
]

html_theme = "furo"
html_title = "rankwise"
html_static_path = ["_static"]
html_css_files = ["rankwise.css"]
html_logo = "_static/rankwise.svg"
html_favicon = "_static/rankwise.svg"
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "sidebar_hide_name": False,
    "light_css_variables": {
        "color-brand-primary": "#1f5fa8",
        "color-brand-content": "#1f5fa8",
        "color-brand-visited": "#1f5fa8",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7db4f0",
        "color-brand-content": "#7db4f0",
        "color-brand-visited": "#7db4f0",
    },
}
