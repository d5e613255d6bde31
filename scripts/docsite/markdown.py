"""Pieces of a page in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """A Markdown table, whose last columns may be ``numbers``; bars inside cells are escaped."""
    rules = ["---"] * (len(head) - numbers) + ["--:"] * numbers
    lines = [list(head), rules, *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def code(text: str) -> str:
    """Code in a sentence; nothing for no text."""
    return f"`{text}`" if text else ""


def prose(text: str) -> str:
    """Prose of a docstring as Markdown: double backquotes become single ones, tildes are no strike-out."""
    return re.sub(r"``", "`", text).replace("~", r"\~")


def formula(tex: str) -> str:
    """A formula in a line of its own, as GitHub and myst read it."""
    return f"$$\n{tex}\n$$\n"
