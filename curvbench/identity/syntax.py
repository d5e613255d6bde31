"""What Python source does, as a hash: its syntax tree without docstrings and layout, the same on every Python."""

from __future__ import annotations

import ast
import functools
import hashlib
import warnings
from collections.abc import Iterator
from itertools import groupby

_UNSAID = frozenset({"ctx", "kind", "type_comment", "type_ignores"})  # what follows from the rest, or does nothing


@functools.cache
def code_hash(source: bytes) -> str:
    """Sixteen hexadecimal digits that change with what ``source`` does, not with comments, docstrings or layout.

    Raises:
        SyntaxError, ValueError: it is no Python, or of a later version.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of invalid escapes: their author has seen it
        tree = ast.parse(source)
    return hashlib.sha256("\n".join(_words(tree)).encode()).hexdigest()[:16]


def _words(tree: ast.AST) -> Iterator[str]:
    """The tree from left to right, one word after the other; a stack, as chains of operators are deep.

    Empty fields are left out: later versions have more of them.
    """
    left: list[object] = [tree]
    while left:
        item = left.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, ast.AST):
            yield f"{type(item).__name__}("
            left.append(")")
            for name, value in reversed(list(ast.iter_fields(item))):
                if value not in (None, []) and name not in _UNSAID:
                    left += [_parts(item, value), f"{name}="]
        elif isinstance(item, list):
            yield "["
            left += ["]", *reversed([_leaf(part) for part in item])]


def _parts(node: ast.AST, value: object) -> object:
    if not isinstance(value, list):
        return _leaf(value)
    return _joined(value) if isinstance(node, ast.JoinedStr) else [part for part in value if not _idle(part)]


def _idle(node: object) -> bool:
    """Whether a statement does nothing: a docstring, another constant, ``pass``."""
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _joined(parts: list[ast.expr]) -> list[object]:
    """The parts of an f-string, with neighbouring texts as one: Pythons differ in where they cut them."""
    found: list[object] = []
    for constant, run in groupby(parts, lambda part: isinstance(part, ast.Constant)):
        cut = list(run)
        text = "".join(part.value for part in cut) if constant else ""  # type: ignore[attr-defined]
        found += [ast.Constant(text)] * bool(text) if constant else cut
    return found


def _leaf(value: object) -> object:
    """A node as it is; a constant or a name as a word, in ASCII because Pythons differ in what they can print."""
    if isinstance(value, ast.AST | list):
        return value
    return hex(value) if type(value) is int else ascii(value)
