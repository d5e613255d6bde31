"""Recording a forward pass: what each layer read, and where its output stands in the graph."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.checkpoint import CheckpointError
from torch.utils.hooks import RemovableHandle

from curvbench.instance.passes import network_pass
from curvbench.spec.geometry import Layer

Hook = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any], Any], Any]
_ROUNDING = 16  # units in the last place by which two ways to the same gradient at the outputs may differ


@dataclass(frozen=True)
class Tape:
    """One recorded forward pass: outputs (N, ..., C) and per layer its input and its output's place in the graph.

    Mappings are in the order of the calls. ``sources`` holds the place of a layer's input in the graph; a layer whose
    input depends on no other layer has none. The graph of a ``kept`` tape is somebody else's, and no pull frees it.
    A layer that the pass has skipped stands at the end: it has read zeros, and has no edge, for nothing depends on it.
    """

    outputs: Tensor
    inputs: Mapping[str, Tensor]
    edges: Mapping[str, GradientEdge]
    shapes: Mapping[str, torch.Size]
    sources: Mapping[str, GradientEdge]
    kept: bool = False
    passed: dict[str, Tensor] = field(default_factory=dict)
    """Left by the last backward pass through ``leaf``: a gradient per layer, that of the outputs under no name."""

    def watch(self, act: Callable[[str, Tensor], None]) -> list[RemovableHandle]:
        """Call ``act(layer, gradient)`` for the gradient at every layer's output in each backward pass from now on."""

        def watched(name: str, edge: GradientEdge) -> RemovableHandle:
            return edge.node.register_prehook(lambda gradients: act(name, gradients[edge.output_nr]))

        return [watched(name, edge) for name, edge in self.edges.items()]

    def leaf(self, note: bool = False) -> Tensor:
        """The outputs without their graph; a gradient that reaches them goes on through it and leaves it whole.

        The loss's own backward pass would free the graph, of which statistics still make use. With ``note`` a ``pull``
        along a multiple of that gradient takes no pass of its own.
        """
        leaf = self.outputs.detach().requires_grad_()

        def go_on(gradient: Tensor) -> None:
            handles = self.watch(self.passed.__setitem__) if note else []
            self.passed.clear()
            torch.autograd.backward(self.outputs, gradient, retain_graph=True)
            for handle in handles:
                handle.remove()
            self.passed[""] = gradient

        leaf.register_hook(go_on)
        return leaf

    def _share(self, cotangent: Tensor) -> Tensor | None:
        """By how much the noted gradient has to be multiplied to be the cotangent; None where it is no multiple."""
        noted = self.passed.get("")
        if len(self.passed) < 2 or noted is None or noted.shape != cotangent.shape:
            return None
        factor = (noted * cotangent).sum() / noted.square().sum()
        rounding = _ROUNDING * torch.finfo(noted.dtype).eps * cotangent.norm()
        return factor if bool((factor * noted - cotangent).norm() <= rounding) else None

    @network_pass()
    def pull(self, cotangent: Tensor, keep: bool = False, layers: Collection[str] | None = None) -> dict[str, Tensor]:
        """Gradients at the outputs of ``layers`` (default: all) for one cotangent (N, ..., C).

        ``keep`` allows another pull.
        """
        names = list(self.shapes if layers is None else layers)
        called = [name for name in names if name in self.edges]
        found: Iterable[Tensor | None]
        if (factor := self._share(cotangent)) is not None:
            found = [factor * self.passed[name] if name in self.passed else None for name in called]
        else:
            edges, kept = [self.edges[name] for name in called], keep or self.kept
            try:
                found = torch.autograd.grad(self.outputs, edges, cotangent, retain_graph=kept, allow_unused=True)
            except CheckpointError as error:
                raise ValueError(
                    "the model runs a part of itself again in its backward pass (torch.utils.checkpoint), where its "
                    "weights are not those that are measured: switch checkpointing off"
                ) from error
        made = dict(zip(called, found, strict=True))
        return {
            name: cotangent.new_zeros(self.shapes[name]) if (gradient := made.get(name)) is None else gradient
            for name in names
        }

    @network_pass()
    def pull_between(self, layer: str, reader: str, cotangent: Tensor) -> Tensor | None:
        """J^T cotangent for the Jacobian J of the input of ``reader`` in the output of ``layer``; the graph is kept.

        ``cotangent`` is shaped like the reader's input, the result like the layer's output; None without a path.
        """
        if reader not in self.sources or layer not in self.edges:
            return None
        ends = [self.sources[reader]], [self.edges[layer]]
        return torch.autograd.grad(*ends, [cotangent], retain_graph=True, allow_unused=True)[0]


class Recorder:
    """Forward hooks that note what each layer read and, with ``trace``, where input and output stand in the graph."""

    def __init__(self, layers: Mapping[str, Layer], cloned: frozenset[str], trace: bool = False) -> None:
        self.layers, self.cloned, self.trace = layers, cloned, trace
        self.calls: Counter[str] = Counter()
        self.inputs: dict[str, Tensor] = {}
        self.edges: dict[str, GradientEdge] = {}
        self.shapes: dict[str, torch.Size] = {}
        self.sources: dict[str, GradientEdge] = {}
        self._versions: dict[str, int] = {}

    def hooks(self) -> dict[str, Hook]:
        return {name: self._hook(name) for name in self.layers}

    def tape(self, outputs: Tensor, shapes: Mapping[str, tuple[torch.Size, torch.Size]], kept: bool = False) -> Tape:
        """What was recorded; ``shapes`` of a sample's input and output are for the layers that were not called."""
        for name in self.layers.keys() - self.calls.keys():
            read, made = shapes[name]
            self.inputs[name] = outputs.new_zeros(len(outputs), *read)
            self.shapes[name] = torch.Size((len(outputs), *made))
        return Tape(outputs, self.inputs, self.edges, self.shapes, self.sources, kept)

    def overwritten(self) -> list[str]:
        """Layers whose input was modified in place after they had read it."""
        return [name for name, x in self.inputs.items() if x._version != self._versions[name]]

    def _hook(self, name: str) -> Hook:
        def record(
            module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor
        ) -> Tensor | None:
            self.calls[name] += 1
            read = args[0] if args else kwargs["input"]
            x = read.detach()
            self.inputs[name] = x.clone() if name in self.cloned else x
            self._versions[name] = x._version
            self.shapes[name] = output.shape
            if not self.trace:
                return None
            if read.requires_grad:
                self.sources[name] = get_gradient_edge(read)
            # Nothing before the first layer needs a gradient. A clone, for an in-place activation may follow.
            traced = output if output.requires_grad else output.requires_grad_().clone()
            # The edge, not the tensor: an in-place activation would move the tensor behind itself.
            self.edges[name] = get_gradient_edge(traced)
            return traced

        return record


@contextmanager
def hooked(model: nn.Module, hooks: Mapping[str, Hook]) -> Iterator[None]:
    """Forward hooks by module name, ahead of the user's own, gone afterwards; compiled code would pass them by."""
    handles = [
        model.get_submodule(name).register_forward_hook(hook, prepend=True, with_kwargs=True)
        for name, hook in hooks.items()
    ]
    try:
        with uncompiled():
            yield
    finally:
        for handle in handles:
            handle.remove()


def uncompiled() -> AbstractContextManager[None]:
    """Inside, what ``torch.compile`` or ``module.compile`` has compiled runs as it was written."""
    if "torch._dynamo" not in sys.modules:  # its import takes seconds, and nothing is compiled without it
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Dropout off, and every module's own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def unfused_attention() -> Iterator[None]:
    """The modules of a Transformer are called one by one: fused, in evaluation mode, they would call no hooks."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def mode_readers(model: nn.Module) -> Iterator[list[nn.Module]]:
    """The modules that look inside whether they train, and do; the list is filled at the end.

    A pass in which none of them looks is that of evaluation mode, whatever its weights.
    """
    watched: list[tuple[nn.Module, Any]] = [(module, type(module)) for module in model.modules() if module.training]
    readers: list[nn.Module] = []
    try:
        for module, kind in watched:
            object.__setattr__(module, "__class__", _watched(kind))
        yield readers
    finally:
        for module, kind in watched:
            object.__setattr__(module, "__class__", kind)
        readers += [module for module, _ in watched if vars(module).pop(_LOOKED, False)]


_LOOKED = "_curvbench_looked"


class _Watched:
    """Comes before a module's class, and notes where the module's mode is read."""

    def __init_subclass__(cls) -> None:
        """Not that of the module's class, which may keep a list of its own."""

    @property
    def training(self) -> bool:
        vars(self)[_LOOKED] = True
        mode: bool = vars(self)["training"]
        return mode

    @training.setter
    def training(self, mode: bool) -> None:
        vars(self)["training"] = mode


@lru_cache(1024)
def _watched(kind: Any) -> type[Any]:
    return type(kind.__name__, (_Watched, kind), {"__module__": kind.__module__})
