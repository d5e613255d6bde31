"""The two hooks by which an optimizer sees the passes of its model: the one addition to the model.

A hook holds its optimizer weakly, so that it goes with it. A hook of a copied or loaded model belongs to nobody: it
goes at the first pass, or when the copied optimizer comes.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class Watcher(Protocol):
    """What watches the passes of a model."""

    def begin_pass(self, is_compiled: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called before each pass; ``is_compiled``: whether the pass is a part of code that dynamo compiles."""

    def end_pass(self, returned: Any) -> Any:
        """Called with what a pass has returned, or None if it failed; what it gives takes the place of that."""


_EAGER: dict[Any, Callable[..., Any]] = {}
"""Functions as they run outside of compiled code; dynamo has a price at each wrapping."""


class Hook:
    """A hook of a model for a watcher, or for nobody."""

    def __init__(self, watcher: Watcher | None = None) -> None:
        self.watcher: Callable[[], Watcher | None] = _nobody if watcher is None else weakref.ref(watcher)

    def __call__(self, module: nn.Module, *call: Any) -> Any:
        if torch.compiler.is_compiling():  # dynamo ends its graph, because the watcher must see real tensors
            torch._dynamo.graph_break(msg="NaturalGradient reads its batch here: give it what torch.compile returns")
        if "torch._dynamo" not in sys.modules:  # its import takes seconds, and nothing is compiled without it
            return _act(self, module, False, *call)
        compiler = torch._C._dynamo.eval_frame.get_eval_frame_callback()
        if _act not in _EAGER:
            _EAGER[_act] = torch._dynamo.disable(_act)
        return _EAGER[_act](self, module, callable(compiler), *call)

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        return Hook, ()


def _nobody() -> None:
    return None


def _act(hook: Hook, module: nn.Module, is_compiled: bool, args: Any, kwargs: Any, *returned: Any) -> Any:
    watcher = hook.watcher()
    if returned:
        return None if watcher is None else watcher.end_pass(*returned)
    if watcher is None:
        _clear(module)
    else:
        watcher.begin_pass(is_compiled, args, kwargs)
    return None


def _clear(model: nn.Module) -> None:
    """Remove hooks of nobody."""
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for number in [n for n, hook in hooks.items() if isinstance(hook, Hook) and hook.watcher() is None]:
            del hooks[number]


def watch(model: nn.Module, watcher: Watcher) -> list[RemovableHandle]:
    """Hook a model for a watcher; the hooks go with the watcher."""
    _clear(model)
    handles = [
        model.register_forward_pre_hook(Hook(watcher), with_kwargs=True, prepend=True),
        model.register_forward_hook(Hook(watcher), with_kwargs=True, always_call=True),
    ]
    weakref.finalize(watcher, unwatch, handles).atexit = False
    return handles


def unwatch(handles: Sequence[RemovableHandle]) -> None:
    """Remove hooks; those that are gone already stay so."""
    for handle in handles:
        handle.remove()
