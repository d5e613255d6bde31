"""Floating-point operations of a block of code, counted as torch dispatches them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from curvbench.meters.flop_formulas import FLOP_MODEL, FORMULAS, FREE, Formula

__all__ = ["FLOP_MODEL", "FlopMeter"]


class FlopMeter(TorchDispatchMode):
    """Counts the FLOP of what runs inside ``with FlopMeter() as meter``, backward passes and transforms included.

    The convention is that of ``curvbench.meters.flop_formulas``. An operation that neither has a formula nor is
    known to be free is never taken for zero: its name is in ``uncounted``. What an operation calls inside its own
    kernel is part of its formula and not counted again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._by_op: Counter[str] = Counter()
        self._uncounted: set[str] = set()

    @property
    def total(self) -> int:
        """FLOP counted so far."""
        return sum(self._by_op.values())

    @property
    def by_op(self) -> dict[str, int]:
        """FLOP by the name of the operation, in-place and ``out`` variants under their functional name."""
        return dict(self._by_op)

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Sorted names of operations that ran without a formula, ``namespace::name``."""
        return tuple(sorted(self._uncounted))

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        rule = _rule(func)
        if rule is None:
            return self._decompose(func, args, kwargs)
        result = func(*args, **kwargs)
        if rule.formula is not None:
            self._by_op[rule.name] += rule.formula(rule.bind(args, kwargs), result)
        return result

    def _decompose(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        # In inference mode composite operations arrive whole.
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        self._uncounted.add(func._schema.name)
        return func(*args, **kwargs)


class _Rule(NamedTuple):
    """How one overload is counted; without a formula it is free."""

    name: str
    formula: Formula | None
    arguments: tuple[str, ...]
    defaults: Mapping[str, Any]

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {**self.defaults, **dict(zip(self.arguments, args, strict=False)), **kwargs}


@cache
def _rule(func: OpOverload) -> _Rule | None:
    """None for an operation that is unknown here."""
    namespace, _, name = func._schema.name.partition("::")
    if not name.endswith("__"):
        name = name.removesuffix("_")  # in place
    if namespace != "aten":
        return _Rule(name, None, (), {}) if namespace in ("prim", "profiler") else None
    arguments = func._schema.arguments
    if name in FORMULAS:
        defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
        return _Rule(name, FORMULAS[name], tuple(a.name for a in arguments), defaults)
    return _Rule(name, None, (), {}) if name in FREE or _is_view(func) else None


def _is_view(func: OpOverload) -> bool:
    aliases = [r.alias_info for r in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)
