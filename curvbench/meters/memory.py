"""Bytes of tensors: the highest sum that is alive at once in a block of code, and the bytes of a state."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from types import BuiltinFunctionType, FunctionType, ModuleType, TracebackType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._ops import OpOverload

from curvbench.meters.dispatch import leave, listen

# torch.tensor passes its new storage to this operation first, so that the input of the operation counts as new.
_NEW_INPUT = (torch.ops.aten.lift_fresh.default,)


class MemoryMeter:
    """Live tensor bytes inside ``with MemoryMeter() as meter``, the same number on every run.

    ``peak`` is the highest sum of bytes of storages that were allocated inside the block and alive at the same time.
    Views share their storage; tensors that autograd saves count until autograd releases them. The meter does not see
    storages from before the block, scratch memory inside a kernel, and memory that is not torch's
    (``torch.from_numpy``). Eigenvalues and singular values count with their vectors, because torch computes vectors
    under any dispatch mode. The garbage collector runs before the block and is off inside, so that reference cycles
    live until the end of the block. Blocks may be nested.
    """

    method = "live tensor bytes"
    _open: ClassVar[list[MemoryMeter]] = []  # blocks inside one another; the outermost hears for all

    def __init__(self) -> None:
        self.peak = 0
        self._live: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._now = 0
        self._collecting = False

    def __enter__(self) -> MemoryMeter:
        self._collecting = gc.isenabled()
        if self._collecting:  # inside another meter's block the collector is off already
            gc.collect()
            gc.disable()
        if not self._open:
            listen(self)
        self._open.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.pop()
        if not self._open:
            leave(self)
        self._live.clear()  # the callbacks go with the references
        if self._collecting:
            gc.enable()

    def takes_apart(self, func: OpOverload) -> bool:
        """No operation: an operation's result tells what was allocated."""
        return False

    def hear(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """Count the storages of an operation's result that are not from before it."""
        old = {s._cdata for s in _storages((*args, *kwargs.values()))} if _returns_inputs(func) else ()
        made = _storages((result,))
        for meter in self._open:
            meter._take(made, old)

    def _take(self, made: Sequence[torch.UntypedStorage], old: Collection[int]) -> None:
        """Count the storages of an operation's result, of which ``old`` are from before it."""
        for storage in made:
            if storage._cdata in self._live or storage._cdata not in old:
                self._record(storage)
        self.peak = max(self.peak, self._now)

    def _record(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._live:  # it may have been resized
            reference, counted = self._live[key]
        else:
            reference, counted = weakref.ref(storage, lambda _: self._release(key)), 0
        self._live[key] = reference, storage.nbytes()
        self._now += storage.nbytes() - counted

    def _release(self, key: int) -> None:
        self._now -= self._live.pop(key)[1]


@cache
def _returns_inputs(func: OpOverload) -> bool:
    """Whether storages of the operation's inputs may be in its result: views, writes, and composite operations."""
    if func in _NEW_INPUT:
        return False
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    return composite or func.namespace != "aten" or any(r.alias_info is not None for r in func._schema.returns)


def _storages(tree: Iterable[Any]) -> list[torch.UntypedStorage]:
    """Storages with memory behind them, once for each tensor in the items and in lists, tuples and mappings of them."""
    found: list[torch.UntypedStorage] = []
    for item in tree:
        if isinstance(item, Tensor):
            if not item.is_meta and torch._C._has_storage(item):
                found.append(item.untyped_storage())
        elif isinstance(item, list | tuple):
            found += _storages(item)
        elif isinstance(item, dict):
            found += _storages(item.values())
    return found


class AllocatorMeter:
    """The peak of ``MemoryMeter``, measured by the allocator of a CUDA device; blocks may be nested."""

    method = "cuda max_memory_allocated"
    _open: ClassVar[list[AllocatorMeter]] = []

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak = self._before = 0

    def __enter__(self) -> AllocatorMeter:
        self._settle()
        self._before = torch.cuda.memory_allocated(self.device)
        self._open.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._settle()
        self._open.remove(self)

    def _settle(self) -> None:
        """Give every open block the highest sum so far, because the device keeps one peak for all of them."""
        torch.cuda.synchronize(self.device)
        highest = torch.cuda.max_memory_allocated(self.device)
        for meter in self._open:
            meter.peak = max(meter.peak, highest - meter._before)
        torch.cuda.reset_peak_memory_stats(self.device)


def memory_meter(device: torch.device | str) -> MemoryMeter | AllocatorMeter:
    """A context that measures a device: ``peak`` is the highest sum of bytes above those live before the block.

    Raises:
        ValueError: neither cpu nor cuda.
    """
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"memory is measured on cpu or cuda, got {device}; run on one of these")
    return MemoryMeter() if device.type == "cpu" else AllocatorMeter(device)


def peak_memory(function: Callable[[], object], device: torch.device | str) -> tuple[int, str]:
    """The highest sum of bytes above those live before ``function``, and the name of the method of measurement."""
    with memory_meter(device) as meter:
        function()
    return meter.peak, meter.method


def state_bytes(tree: object, exclude: object = ()) -> int:
    """Bytes of the distinct storages reachable from ``tree``, without those reachable from ``exclude``.

    Tensors in dataclasses, mappings, sequences, sets and attributes are reachable, at any depth; tensors in closures of
    functions are not. A view counts its whole storage, because it keeps the whole storage alive. Pass the user's model
    or Instance as ``exclude`` if a state refers to it.
    """
    excluded = {storage._cdata for storage in _reachable(exclude)}
    sizes = {storage._cdata: storage.nbytes() for storage in _reachable(tree)}
    return sum(size for key, size in sizes.items() if key not in excluded)


def _reachable(tree: object) -> Iterator[torch.UntypedStorage]:
    stack, seen = [tree], {id(tree): tree}  # objects stay alive in ``seen``, so that no id is used twice
    while stack:
        node = stack.pop()
        yield from _storages((node,)) if isinstance(node, Tensor) else ()
        for child in _children(node):
            if id(child) not in seen:
                seen[id(child)] = child
                stack.append(child)


def _children(node: Any) -> Iterable[Any]:
    if isinstance(node, (type, ModuleType, FunctionType, BuiltinFunctionType, str, bytes)):
        return ()
    if isinstance(node, Mapping):
        items: Iterable[Any] = node.values()
    else:
        items = node if isinstance(node, (list, tuple, set, frozenset, deque)) else ()
    slots = [getattr(node, f.name) for f in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []
    return [*items, *slots, *getattr(node, "__dict__", {}).values()]
