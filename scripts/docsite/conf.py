"""What sphinx reads before it builds the site."""

from __future__ import annotations

import re
from typing import Any

import click
from sphinx.application import Sphinx

import curvbench

project = "curvbench"
copyright = "the curvbench developers"
version = release = curvbench.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click", "docsite.mathml"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = "curvbench"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_extra_path = ["served"]
exclude_patterns = ["served"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options: dict[str, Any] = {"footer_icons": []}
pygments_style, pygments_dark_style = "default", "github-dark"
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
add_module_names = False
python_maximum_signature_line_length = 88
LITERAL = re.compile(r"(``.*?``)")


def setup(app: Sphinx) -> None:
    """Docstrings are prose: bars and stars in them are mathematics, and no markup. Paths are plain words."""
    app.connect("autodoc-process-docstring", _as_prose, priority=400)  # before napoleon adds markup of its own
    app.connect("sphinx-click-process-options", _as_typed)


def _as_prose(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            first, *others = LITERAL.split(line)
            lines[number] = _escaped(first) + "".join(re.sub(r"^(?=[\w^])", r"\\ ", _escaped(part)) for part in others)


def _escaped(part: str) -> str:
    """A literal as it stands; other text without marks of its own."""
    return part if part.startswith("``") else re.sub(r"[|*]|(?<=\w)_(?=\W|$)", r"\\\g<0>", part)


def _as_typed(app: Sphinx, context: click.Context, lines: list[str]) -> None:
    lines[:] = [re.sub(r"PosixPath\('(.*?)'\)", r"'\1'", line) for line in lines]
