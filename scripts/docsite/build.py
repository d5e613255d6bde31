"""Builds the site: warnings are errors, and so is whatever a page would load from elsewhere."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from docsite.assemble import assemble

ADDRESS = r"""["']?((?:https?:)?//[^"'\s>)]+)"""
FETCHED = (  # by a browser, of its own accord
    r"<(?:script|img|iframe|source|video|audio|embed|object|input)\b[^>]*?\b(?:src|data|srcset|poster)\s*=\s*",
    r"<(?:image|use)\b[^>]*?\bhref\s*=\s*",
    r"<link\b(?![^>]*\brel\s*=\s*[\"']?(?:canonical|author|license|next|prev|search)\b)[^>]*?\bhref\s*=\s*",
    r"url\(\s*",
    r"@import\s+",
)
LOADED = re.compile("|".join(start + ADDRESS for start in FETCHED), re.IGNORECASE)


def build(destination: Path) -> None:
    """Write the site to ``destination``; what stood there gives way.

    Raises:
        ValueError: sphinx had an error or a warning, or a page loads something from elsewhere.
    """
    from sphinx.cmd.build import build_main

    with tempfile.TemporaryDirectory() as folder:
        source, html = Path(folder) / "source", Path(folder) / "html"
        assemble(source)
        if build_main(["-q", "-W", "--keep-going", "-b", "html", "-d", f"{folder}/doctrees", str(source), str(html)]):
            raise ValueError("the site was not built: sphinx says why above")
        if loads := list(loaded_from_elsewhere(html)):
            raise ValueError(f"the site loads from elsewhere: {'; '.join(loads)}")
        shutil.rmtree(destination, ignore_errors=True)
        shutil.move(html, destination)


def loaded_from_elsewhere(html: Path) -> Iterator[str]:
    """``FILE: ADDRESS`` of every script, style, font or picture that a page of the site would load from elsewhere."""
    for file in sorted(html.rglob("*")):
        if file.suffix in (".html", ".css", ".svg"):
            for match in LOADED.finditer(file.read_text()):
                yield f"{file.relative_to(html)}: {next(filter(None, match.groups()))}"
