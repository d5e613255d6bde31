"""Floating-point operations of a block of code, counted as torch dispatches them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode

from curvbench.instance.contents import leaves
from curvbench.instance.passes import in_network_pass
from curvbench.meters.dispatch import leave, listen
from curvbench.meters.flop_formulas import Formula
from curvbench.meters.flop_model import FORMULAS, FREE, VALUES_ONLY


class FlopMeter:
    """Counts the FLOP of what runs inside ``with FlopMeter() as meter``, backward passes and transforms included.

    The convention is in ``curvbench.meters.flop_model``. An operation without a formula that is not free by the
    convention is not counted as zero: its name is in ``uncounted``. Operations inside the kernel of an operation are
    part of its formula and not counted again.
    """

    def __init__(self) -> None:
        self._by_op: Counter[str] = Counter()
        self._by_dtype: Counter[torch.dtype] = Counter()
        self._passes = 0
        self._uncounted: set[str] = set()
        self._values = _ValuesOnly()

    def __enter__(self) -> FlopMeter:
        self._values.__enter__()  # type: ignore[no-untyped-call]
        listen(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        leave(self)
        self._values.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]

    @property
    def total(self) -> int:
        """FLOP counted so far."""
        return sum(self._by_op.values())

    @property
    def passes(self) -> int:
        """FLOP of passes through the network, which ``curvbench.instance.passes`` marks."""
        return self._passes

    @property
    def by_op(self) -> dict[str, int]:
        """FLOP by the name of the operation; in-place and ``out`` variants have the functional name."""
        return dict(self._by_op)

    @property
    def by_dtype(self) -> dict[torch.dtype, int]:
        """FLOP by the dtype of what the operations give."""
        return dict(self._by_dtype)

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Sorted names of operations that ran without a formula, ``namespace::name``."""
        return tuple(sorted(self._uncounted))

    def takes_apart(self, func: OpOverload) -> bool:
        """Whether an operation is unknown to the convention: in inference mode composite operations arrive whole."""
        return _rule(func) is None

    def hear(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """Count an operation that has run."""
        rule = _rule(func)
        if rule is None:
            if not _is_abstract(result):
                self._uncounted.add(func._schema.name)
            return
        formula = VALUES_ONLY.get(rule.name, rule.formula) if self._values.active else rule.formula
        if formula is not None:
            flop = formula(rule.bind(args, kwargs), result)
            self._by_op[rule.name] += flop
            self._by_dtype[_dtype(result, args)] += flop
            self._passes += flop if in_network_pass() else 0


def _dtype(*values: Any) -> torch.dtype:
    """The dtype of the first tensor of floating-point numbers; operations in place may give none."""
    tensors = (value for _, value in leaves(values) if isinstance(value, Tensor))
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.get_default_dtype())


class _ValuesOnly(TorchFunctionMode):
    """Notes that a caller asks for eigenvalues or singular values without vectors.

    Under any dispatch mode torch computes the vectors as well, which it otherwise does only for gradients and
    transforms; the meter counts the operations that run without a meter. This function mode also keeps
    ``nn.Transformer`` from its fused layers, whose products are then counted one by one.
    """

    FUNCTIONS = (
        *(torch.linalg.eigvalsh, torch.linalg.eigvals, torch.linalg.svdvals, torch.linalg.matrix_norm),
        *(torch.linalg.norm, torch.linalg.cond, torch.linalg.matrix_rank, torch.norm, Tensor.norm),
    )

    active = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.active = func in self.FUNCTIONS and not _vectors_needed(args)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.active = False


def _vectors_needed(args: tuple[Any, ...]) -> bool:
    differentiated = torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)
    return differentiated or torch._C._functorch.peek_interpreter_stack() is not None


class _Rule(NamedTuple):
    """The count of one overload; without a formula the overload is free."""

    name: str
    formula: Formula | None
    arguments: tuple[str, ...]
    defaults: Mapping[str, Any]

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {**self.defaults, **dict(zip(self.arguments, args, strict=False)), **kwargs}


@cache
def _rule(func: OpOverload) -> _Rule | None:
    """The rule of an operation; None means that the convention does not know the operation."""
    namespace, _, name = func._schema.name.partition("::")
    if not name.endswith("__"):
        name = name.removesuffix("_")  # in place
    if namespace not in ("aten", "curvbench"):
        return _Rule(name, None, (), {}) if namespace in ("prim", "profiler") else None
    arguments = func._schema.arguments
    if name in FORMULAS:
        defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
        return _Rule(name, FORMULAS[name], tuple(a.name for a in arguments), defaults)
    return _Rule(name, None, (), {}) if name in FREE or _is_view(func) else None


def _is_view(func: OpOverload) -> bool:
    aliases = [r.alias_info for r in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _is_abstract(result: Any) -> bool:
    return isinstance(result, Tensor) and result.is_meta
