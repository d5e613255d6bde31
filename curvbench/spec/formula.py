"""Cost formulas: texts that people read in the docs, and that the meter evaluates.

``2 N S G M (D + R) + [stage = first] L (N R)^2`` is a sum of products by juxtaposition; ``^`` is a power,
``[condition]`` is 1 or 0, and ``min``, ``max`` and ``floor`` are functions. A term with G, M, D, S or k (the entries of
a layer's kernel, 0 for a Linear) is summed over the layers; L, their number, stands in other terms alone. N, R, P and L
are numbers of the batch and the network. Every other name is a hyperparameter, or in a condition the value of one.
"""

from __future__ import annotations

import ast
import functools
import itertools
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from curvbench.spec.geometry import LayerSize

OF_A_LAYER = ("G", "M", "D", "S", "k")  # in the order of ``LayerSize``
_TOKEN = re.compile(r"\d+|[A-Za-z_]\w*|>=|<=|!=|[-+/^(),\[\]<>=]")
_PYTHON = {"^": "**", "=": "==", "[": "(", "]": ")"}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {"min": min, "max": max, "floor": math.floor}
_OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.LtE: operator.le,
}


def evaluate(
    formula: str, values: Mapping[str, Any], layers: Sequence[LayerSize], where: Mapping[str, str] | None = None
) -> float:
    """The value of a formula.

    Args:
        formula: the text.
        values: letters of the legend and hyperparameters by name.
        layers: sizes of the layers, over which terms with a layer's letter are summed.
        where: abbreviations by name, each with its own formula; they may hold letters of a layer.

    Raises:
        ValueError: the text is no formula, or has a name that has no value.
    """
    where = where or {}
    per_layer = {*OF_A_LAYER, *(name for name, text in where.items() if _names(text) & {*OF_A_LAYER})}
    total = 0.0
    for term in _terms(formula):
        places = [dict(zip(OF_A_LAYER, size, strict=True)) for size in layers] if _names(term) & per_layer else [{}]
        for place in places:
            scope = {**values, **place}
            for name, text in where.items():
                if name in _names(term):
                    scope[name] = _value(_parsed(text), scope)
            try:
                total += float(_value(_parsed(term), scope))
            except (ArithmeticError, TypeError, ValueError) as error:
                raise ValueError(f"the cost formula {formula!r} has no value: {error}") from error
    return total


@functools.cache
def _terms(formula: str) -> tuple[str, ...]:
    """The texts that are added: the formula is cut at every plus and before every minus outside of all brackets."""
    terms, depth, start = [], 0, 0
    for place, sign in enumerate(formula):
        depth += (sign in "([") - (sign in ")]")
        if depth == 0 and sign in "+-" and formula[start:place].strip():
            terms.append(formula[start:place])
            start = place + (sign == "+")
    return (*terms, formula[start:])


@functools.cache
def _names(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[A-Za-z_]\w*", text))


@functools.cache
def _parsed(text: str) -> ast.expr:
    """The syntax tree of a formula, in which juxtaposition has become a product."""
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != text.replace(" ", ""):
        raise ValueError(f"cannot read the cost formula {text!r}: expected names, numbers, + - / ^ and brackets")
    python = ""
    for before, token in itertools.pairwise(["(", *tokens]):
        ends_factor = before not in _FUNCTIONS and re.fullmatch(r"\w+|[)\]]", before)
        python += " * " if ends_factor and re.fullmatch(r"\w+|[(\[]", token) else " "
        python += _PYTHON.get(token, token)
    try:
        return ast.parse(python.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"cannot read the cost formula {text!r}: {error.msg}") from error


def _value(node: ast.expr, scope: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name) if name in scope:
            return scope[name]
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_value(left, scope), _value(right, scope))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, scope)
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            if not any(isinstance(node, ast.Name) and node.id in scope for node in ast.walk(left)):
                raise ValueError(f"the condition [{ast.unparse(left)} ...] begins with no letter and no hyperparameter")
            return _OPERATORS[type(op)](_side(left, scope), _side(right, scope))
        case ast.Call(func=ast.Name(id=name), args=arguments) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_value(argument, scope) for argument in arguments))
    raise ValueError(f"a cost formula has {ast.unparse(node)!r}, which is no letter and no hyperparameter of its probe")


def _side(node: ast.expr, scope: Mapping[str, Any]) -> Any:
    """A side of a condition: a name that has no value stands for itself, as the value of a hyperparameter."""
    return node.id if isinstance(node, ast.Name) and node.id not in scope else _value(node, scope)
