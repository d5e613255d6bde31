"""Formulas as MathML, made when the site is built: the browser draws them, and nothing is loaded."""

from __future__ import annotations

from typing import Any, Literal

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer ``mathml``."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(_drawn(node, "inline"))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="formula">{_drawn(node, "block")}</div>')
    raise nodes.SkipNode


def _drawn(node: nodes.Node, display: Literal["inline", "block"]) -> str:
    """The formula in MathML; a command that is not known stays as it is written, which is a warning."""
    drawn: str = convert(node.astext(), display=display)
    if "\\" in drawn:
        logging.getLogger(__name__).warning("a command of TeX is not known: %s", node.astext(), location=node)
    return drawn
