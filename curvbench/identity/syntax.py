"""A hash over the syntax tree of Python source, without docstrings and layout, equal on every version of Python."""

from __future__ import annotations

import ast
import functools
import hashlib
import warnings
from collections.abc import Iterator
from itertools import groupby

_LEFT_OUT = frozenset({"ctx", "kind", "type_comment", "type_ignores"})  # they follow from the rest, or do nothing


@functools.cache
def code_hash(source: bytes) -> str:
    """Sixteen hexadecimal digits that change with the code in ``source``, not with comments, docstrings or layout.

    Raises:
        SyntaxError, ValueError: the source is no Python, or of a later version.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python has warned the author of invalid escapes
        tree = ast.parse(source)
    return hashlib.sha256("\n".join(_words(tree)).encode()).hexdigest()[:16]


def _words(tree: ast.AST) -> Iterator[str]:
    """The tree from left to right, word by word.

    A stack replaces recursion, because chains of operators are deep. Empty fields are left out, because later versions
    of Python have more of them.
    """
    stack: list[object] = [tree]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, ast.AST):
            yield f"{type(item).__name__}("
            stack.append(")")
            for name, value in reversed(list(ast.iter_fields(item))):
                if value not in (None, []) and name not in _LEFT_OUT:
                    stack += [_parts(item, value), f"{name}="]
        elif isinstance(item, list):
            yield "["
            stack += ["]", *reversed([_leaf(part) for part in item])]


def _parts(node: ast.AST, value: object) -> object:
    if not isinstance(value, list):
        return _leaf(value)
    return _joined(value) if isinstance(node, ast.JoinedStr) else [part for part in value if not _idle(part)]


def _idle(node: object) -> bool:
    """Whether a statement does nothing: a docstring, another constant, ``pass``."""
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _joined(parts: list[ast.expr]) -> list[object]:
    """The parts of an f-string, with neighbouring texts as one, because versions of Python cut them differently."""
    joined: list[object] = []
    for is_text, run in groupby(parts, lambda part: isinstance(part, ast.Constant)):
        pieces = list(run)
        text = "".join(piece.value for piece in pieces) if is_text else ""  # type: ignore[attr-defined]
        joined += [ast.Constant(text)] * bool(text) if is_text else pieces
    return joined


def _leaf(value: object) -> object:
    """A node as it is; a constant or name as a word in ASCII, because versions of Python print others differently."""
    if isinstance(value, ast.AST | list):
        return value
    return hex(value) if type(value) is int else ascii(value)
