"""A mode that notes every use of a parameter in a forward pass, and cuts the parameter off the graph there.

At a call that a rule knows, the weight is passed detached and the call is noted. At any other call the parameter is
passed as it is, so that autograd still leads from the outputs to exactly those parameters that something unknown reads:
no use is missed. A result of parameters alone is a weight itself, a ``Computed`` one.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from curvbench.uses.calls import Call, Computed, Event, Key, Operation, View, Weight, contiguous

Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}
"""The rule of each torch function that has one; a rule gives ``NotImplemented`` where it does not apply."""

_OPENED = ("torch.nn.functional", "torch.functional")


class Tracer(TorchFunctionMode):
    """Notes the uses of the tensors ``parameters`` in the passes inside its context.

    Args:
        parameters: the parameters by name, as the pass reads them; each requires a gradient.
        samples: N; a use with fewer rows cannot have a row for every sample.
        vetoed: calls that are no uses, because samples share their rows: their result is a computed weight.
        cloned: calls whose input is overwritten later, so that a copy of it is kept.
        live: whether weights stay in the graph at known calls too, as a training step needs it.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        samples: int,
        vetoed: Collection[Key] = frozenset(),
        cloned: Collection[Key] = frozenset(),
        live: bool = False,
    ) -> None:
        super().__init__()
        self.parameters = parameters
        self.samples, self.vetoed, self.cloned, self.live = samples, vetoed, cloned, live
        self.calls: list[Call] = []
        self.events: list[Event] = []
        self.computed: list[Tensor] = []
        self.reorders = False
        """Whether tensors other than weights are indexed by tensors: rows of another batch may lie in another order."""
        self.differentiates = False
        """Whether the model takes derivatives itself, which read weights unseen: nothing may be cut then."""
        self._names = {id(tensor): name for name, tensor in parameters.items()}
        self._numbers: dict[int, int] = {}
        self._constants: list[Tensor] = []
        self._padded: dict[int, tuple[Tensor, Tensor]] = {}
        self._counts: Counter[tuple[Operation, Weight]] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _INDEXING and not self.reorders:
            self.reorders = self._is_reordering(func, *args, **kwargs)
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if func is torch.autograd.grad:
            self.differentiates = True
        rule = RULES.get(func)
        if rule is not None and not _is_rerun():
            result = rule(self, func, *args, **kwargs)
            if result is not NotImplemented:
                return result
        weights = [t for t in tensors_in((args, kwargs.values())) if self.weight(t) is not None]
        if not weights:
            return func(*args, **kwargs)
        if isinstance(func, FunctionType) and func.__module__ in _OPENED and rule is None:
            with self:
                return _opened(func)(*args, **kwargs)
        result = func(*args, **kwargs)
        self._note_computed(args, kwargs, result)
        return result

    def weight(self, tensor: Any) -> Weight | None:
        """The weight that a tensor is; None for activations, constants and anything else."""
        if not isinstance(tensor, Tensor) or not tensor.requires_grad:
            return None
        base: Any = tensor
        if id(tensor) not in self._names and tensor._is_view():
            base = tensor._base
        if (name := self._names.get(id(base))) is not None:
            if tensor is base:
                return View(name, tuple(tensor.shape), contiguous(tensor.shape), 0)
            if base.is_contiguous():  # else, as in channels_last, a view has no strides of the entries row by row
                offset = tensor.storage_offset() - base.storage_offset()
                return View(name, tuple(tensor.shape), tensor.stride(), offset)
        number = self._numbers.get(id(tensor))
        return None if number is None else Computed(number)

    def take(self, operation: Operation, tensor: Any, rows: int | None = None) -> Key | None:
        """The key of a use of a tensor by an operation; None means that it is no weight, or that the use is vetoed.

        ``rows``: the rows of the use, if fewer than samples are possible; then it is no use.
        """
        weight = self.weight(tensor)
        if weight is None:
            return None
        key = Key(operation, weight, self._counts[operation, weight])
        self._counts[operation, weight] += 1
        if key in self.vetoed or (rows is not None and rows < self.samples):
            self.events.append(Event(key, None))
            return None
        return key

    def cut(self, tensor: Any, key: Key | None) -> Any:
        """The weight as a known call reads it; a tensor without a key stays as it is."""
        return tensor if key is None or self.live else tensor.detach()

    def note(
        self,
        key: Key | None,
        out: Tensor,
        rows: tuple[int, ...],
        tensor: Tensor,
        x: Tensor | None = None,
        **others: Any,
    ) -> None:
        """Note a call whose gradient is that of ``out``; ``others`` are fields of ``Call``."""
        if key is None:
            return
        _, read = self._padded.get(id(x), (x, x))
        source = get_gradient_edge(read) if read is not None and read.requires_grad else None
        others["padded"] = None if read is x or read is None else read.detach()
        if x is not None:
            x = x.detach().clone() if key in self.cloned else x.detach()
        others["tensor"] = tensor if isinstance(key.weight, Computed) else None
        version = 0 if x is None else x._version
        self.events.append(Event(key, out.numel() / self.samples))
        self.calls.append(Call(key, get_gradient_edge(out), out.shape, rows, x, version, source, **others))

    def note_padding(self, out: Tensor, input: Tensor) -> None:
        """Note that ``out`` repeats entries of ``input`` around it: the layer that reads it is one with its padding."""
        self._padded[id(out)] = out, input

    def overwritten(self) -> frozenset[Key]:
        """Calls whose input was modified in place after they had read it."""
        return frozenset(call.key for call in self.calls if call.x is not None and call.x._version != call.version)

    def _note_computed(self, args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
        """Note results of weights and constants; a constant with a row per sample is an input, and its result not."""
        if all(self._is_constant(t) or self.weight(t) is not None for t in tensors_in((args, kwargs.values()))):
            for tensor in tensors_in((result,)):
                if tensor.requires_grad and self.weight(tensor) is None:
                    self.events.append(Event(None, tuple(tensor.shape)))
                    self._numbers[id(tensor)] = len(self.computed)
                    self.computed.append(tensor)

    def take_constants(self, tensors: Iterable[Tensor]) -> None:
        """Take buffers and frozen parameters for what they are, whatever their shape."""
        self._constants = list(tensors)

    def _is_reordering(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
        """Whether rows of something else than weights, constants and masks move to places that a tensor tells."""
        tensors = [tensor for tensor in tensors_in((args, kwargs.values())) if tensor.ndim > 0]
        if not tensors:
            return False
        first, *others = tensors
        if func in _SORTING:
            dim = kwargs.get("dim", args[1 + (func in _TOPK)] if len(args) > 1 + (func in _TOPK) else -1)
            return first.requires_grad and (first.ndim == 1 or dim not in (-1, first.ndim - 1))
        moved = [first] if func in _READING else [t for t in (first, *others) if t.is_floating_point()]
        places = [t for t in others if not t.is_floating_point() and not self._is_kept(t)]
        return bool(places) and any(
            t.dtype != torch.bool and self.weight(t) is None and not self._is_kept(t) for t in moved
        )

    def _is_kept(self, tensor: Tensor) -> bool:
        """Whether a tensor is a buffer or a frozen parameter, or a view of one."""
        base = tensor._base if tensor._is_view() else tensor
        return any(base is constant for constant in self._constants)

    def _is_constant(self, tensor: Tensor) -> bool:
        if self._is_kept(tensor):
            return True
        has_rows = tensor.is_floating_point() and tensor.shape[:1] == (self.samples,) and self.samples > 1
        return not tensor.requires_grad and not has_rows


def _functions(names: str) -> set[Any]:
    return {getattr(place, name) for place in (torch, Tensor) for name in names.split() if hasattr(place, name)}


_TOPK = _functions("topk")
_SORTING = _functions("sort msort topk")
_READING = _functions("__getitem__ index_select gather take take_along_dim masked_select _pack_padded_sequence")
_WRITING = _functions(
    "__setitem__ masked_scatter masked_scatter_ index_put index_put_ index_add index_add_ index_copy index_copy_ "
    "scatter scatter_ scatter_add scatter_add_ scatter_reduce"
)
_INDEXING = _SORTING | _READING | _WRITING


def traced(out: Tensor) -> Tensor:
    """An output with a place in the graph: a clone where no gradient is needed so far, as an in-place op may follow."""
    return out if out.requires_grad else out.requires_grad_().clone()


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among values and inside their lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)) or type(value) is type({}.values()):
            yield from tensors_in(value)


def _is_rerun() -> bool:
    """Whether the block runs again in the backward pass (a checkpoint without reentry), where nothing is traced."""
    return (
        "torch.utils.checkpoint" in sys.modules
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    )


@lru_cache(256)
def _opened(func: FunctionType) -> FunctionType:
    """A Python function of torch that does not hand itself over to the mode: the mode sees the calls inside."""
    closed = {name: _no for name in func.__globals__ if name.startswith("has_torch_function")}
    opened = FunctionType(
        func.__code__, {**func.__globals__, **closed}, func.__name__, func.__defaults__, func.__closure__
    )
    opened.__kwdefaults__ = func.__kwdefaults__
    return opened


def _no(*_: Any) -> bool:
    return False
