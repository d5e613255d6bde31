"""Passes through the network: with other tensors, marked for meters, and in their full precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

# A global of the process, because autograd runs backward passes on CUDA in its own threads, which see no ContextVar.
_depth = 0
_KINDS = ("cpu", "cuda")


@contextmanager
def network_pass() -> Iterator[None]:
    """The block runs a forward or backward pass through the network, or a part of a pass; blocks may nest."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def in_network_pass() -> bool:
    """Whether a block of ``network_pass`` is open."""
    return _depth > 0


def keeps_graph() -> bool:
    """Whether the backward pass that runs keeps its graph, so that another one can follow."""
    keeps: bool = torch._C._autograd._get_current_graph_task_keep_graph()
    return keeps


def autocasts() -> bool:
    """Whether ``torch.autocast``, which rounds float32 products to 8 or 11 bits, is on for a kind of device."""
    return any(map(torch.is_autocast_enabled, _KINDS))


# Whether TF32 was asked for, by whoever opened ``tf32``; a global for the reason of ``_depth``.
_in_tf32 = False


def _places() -> Sequence[tuple[Any, str, tuple[Any, Any]]]:
    """Where torch keeps whether float32 on CUDA is rounded to TF32, by which name, and the words for no and yes.

    Since torch 2.9 each kind of operation has a precision; its older flags raise where the two kinds were mixed.
    """
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if not hasattr(cudnn, "conv"):
        return [(place, "allow_tf32", (False, True)) for place in (products, cudnn)]
    return [(place, "fp32_precision", ("ieee", "tf32")) for place in (products, cudnn.conv, cudnn.rnn)]


@contextmanager
def tf32(asked: bool) -> Iterator[None]:
    """Inside, float32 products and convolutions on CUDA round their factors to 11 bits, or none of them does.

    Outside, torch does so in convolutions unless its user says otherwise.
    """
    global _in_tf32
    places, before = _places(), _in_tf32
    settings = [getattr(place, name) for place, name, _ in places]
    try:
        _in_tf32 = asked
        for place, name, words in places:
            setattr(place, name, words[asked])
        yield
    finally:
        _in_tf32 = before
        for (place, name, _), setting in zip(places, settings, strict=True):
            setattr(place, name, setting)


@contextmanager
def full_precision() -> Iterator[None]:
    """Autocast, and TF32 unless ``tf32`` asks for it, are off inside the block or inside the decorated function."""
    with ExitStack() as off:
        off.enter_context(tf32(_in_tf32))
        for kind in filter(torch.is_autocast_enabled, _KINDS):
            off.enter_context(torch.autocast(kind, enabled=False))
        yield


def called(model: nn.Module, tensors: Mapping[str, Tensor], args: Any, kwargs: Any) -> Any:
    """What a model returns with these tensors in place of its parameters and buffers, tied ones under one name.

    ``functional_call`` alone does not give a module that has two names its own parameters back.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    others = {id(tensor): tensors[name] for name, tensor in named if name in tensors}
    places = {
        f"{prefix}.{name}" if prefix else name: others[id(tensor)]
        for prefix, module in model.named_modules()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None and id(tensor) in others
    }
    return functional_call(model, places, args, kwargs, tie_weights=False)


class Uncast(TorchFunctionMode):
    """Autocast is off inside this context, even if a model enters it in its own ``forward``; ``met``: a model did."""

    met = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if not autocasts():
            return func(*args, **(kwargs or {}))
        self.met = True
        with full_precision():
            return func(*args, **(kwargs or {}))
