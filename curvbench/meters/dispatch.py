"""One dispatch mode for all open meters, because every mode more makes every operation slower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode


class Listener(Protocol):
    """What hears of every operation that torch dispatches."""

    def takes_apart(self, func: OpOverload) -> bool:
        """Whether the parts of an operation are to be heard in its place, if it has parts."""

    def hear(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """Take note of an operation that has run."""


class _Dispatch(TorchDispatchMode):
    """Runs every operation once and tells all listeners."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.listeners: list[Listener] = []  # in the order of their blocks, outermost first

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # measured models run uncompiled, so that torch need not guard every operation against Dynamo

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if any(listener.takes_apart(func) for listener in self.listeners):
            result = self._by_parts(func, args, kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        for listener in self.listeners:
            listener.hear(func, args, kwargs, result)
        return result

    def _by_parts(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        self.__enter__()  # type: ignore[no-untyped-call]
        try:
            return func.decompose(*args, **kwargs)
        finally:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]


_mode = _Dispatch()


def listen(listener: Listener) -> None:
    """Tell a listener of every operation from now on."""
    if not _mode.listeners:
        _mode.__enter__()  # type: ignore[no-untyped-call]
    _mode.listeners.append(listener)


def leave(listener: Listener) -> None:
    """Tell a listener no more; the last one ends the mode."""
    _mode.listeners.remove(listener)
    if not _mode.listeners:
        _mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
