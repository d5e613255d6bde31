"""The grammar of labels: ``NAME[key=value,...]``, in which a value may be a label itself.

A comma separates arguments only outside of inner brackets. A backslash before a comma, a bracket or a backslash makes
it a letter, as in the texts and paths of users.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_ESCAPED = re.compile(r"\\([\\\[\],])")
_SIGN = re.compile(r"\\[\\\[\],]|[\[\],]")


def escaped(text: str) -> str:
    """A text as a value of an argument."""
    return re.sub(r"([\\\[\],])", r"\\\1", text)


def unescaped(value: str) -> str:
    """The text that ``escaped`` has made a value of."""
    return _ESCAPED.sub(r"\1", value)


def split_label(label: str) -> tuple[str, str]:
    """The name of a label, and the text of its arguments; a label whose brackets do not match is all name."""
    signs, depth = list(_signs(label)), 0
    if not signs or signs[-1] != (len(label) - 1, "]"):
        return label, ""
    for place, sign in reversed(signs):
        depth += (sign == "]") - (sign == "[")
        if depth == 0:
            return label[:place], label[place + 1 : -1]
    return label, ""


def split_arguments(text: str) -> list[str]:
    """The arguments in ``key=value,...``; empty ones are left out."""
    parts, depth, start = [], 0, 0
    for place, sign in _signs(text):
        depth += (sign == "[") - (sign == "]")
        if sign == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]


def arguments_of(text: str) -> dict[str, str]:
    """The values in ``key=value,...`` by their keys, as they are written."""
    pairs = (part.partition("=") for part in split_arguments(text))
    return {key.strip(): value.strip() for key, _, value in pairs}


def _signs(text: str) -> Iterator[tuple[int, str]]:
    """The commas and brackets that no backslash escapes, with their places."""
    return ((match.start(), match[0]) for match in _SIGN.finditer(text) if len(match[0]) == 1)
