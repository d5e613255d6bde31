"""Recorded forward passes: the input of every layer, and the place of its output in the graph."""

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
_ROUNDING = 16  # units in the last place by which two computations of one gradient at the outputs may differ


@dataclass(frozen=True)
class Tape:
    """One recorded forward pass: outputs (N, ..., C) and per layer its input and its output's place in the graph.

    Mappings are in the order of the calls. ``sources`` holds the place of a layer's input in the graph; a layer whose
    input depends on no other layer has no source. ``keeps_graph``: no pull frees the graph, because the training step
    owns it. A layer that the pass skipped stands at the end: its input is zeros, and it has no edge, because no output
    depends on it.
    """

    outputs: Tensor
    inputs: Mapping[str, Tensor]
    edges: Mapping[str, GradientEdge]
    shapes: Mapping[str, torch.Size]
    sources: Mapping[str, GradientEdge]
    keeps_graph: bool = False
    passed: dict[str, Tensor] = field(default_factory=dict)
    """The gradients of the last backward pass through ``leaf``, by layer; the outputs' gradient has the name ""."""

    def watch(self, act: Callable[[str, Tensor], None]) -> list[RemovableHandle]:
        """Call ``act(layer, gradient)`` for the gradient at every layer's output in each later backward pass."""

        def watched(name: str, edge: GradientEdge) -> RemovableHandle:
            return edge.node.register_prehook(lambda gradients: act(name, gradients[edge.output_nr]))

        return [watched(name, edge) for name, edge in self.edges.items()]

    def leaf(self, note: bool = False) -> Tensor:
        """The outputs as a leaf; a gradient that reaches the leaf goes on through the tape's graph and keeps the graph.

        The loss's own backward pass would free the graph, which statistics still need. With ``note`` the gradients at
        all layers are kept, so that a ``pull`` along a multiple of the same gradient takes no pass of its own.
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

    def _factor(self, cotangent: Tensor) -> Tensor | None:
        """The factor c with cotangent = c * (noted gradient); None means that the cotangent is no multiple of it."""
        noted = self.passed.get("")
        if len(self.passed) < 2 or noted is None or noted.shape != cotangent.shape:
            return None
        factor = (noted * cotangent).sum() / noted.square().sum()
        rounding = _ROUNDING * torch.finfo(noted.dtype).eps * cotangent.norm()
        return factor if bool((factor * noted - cotangent).norm() <= rounding) else None

    @network_pass()
    def pull(self, cotangent: Tensor, keep: bool = False, layers: Collection[str] | None = None) -> dict[str, Tensor]:
        """Gradients at the outputs of ``layers`` (default: all) for one cotangent (N, ..., C).

        ``keep``: the graph stays, so that another pull can follow.
        """
        names = list(self.shapes if layers is None else layers)
        called = [name for name in names if name in self.edges]
        gradients: Iterable[Tensor | None]
        if (factor := self._factor(cotangent)) is not None:
            gradients = [factor * self.passed[name] if name in self.passed else None for name in called]
        else:
            edges, keep = [self.edges[name] for name in called], keep or self.keeps_graph
            try:
                gradients = torch.autograd.grad(self.outputs, edges, cotangent, retain_graph=keep, allow_unused=True)
            except CheckpointError as error:
                raise ValueError(
                    "the model runs a part of itself again in its backward pass (torch.utils.checkpoint), where its "
                    "weights are not those that are measured: switch checkpointing off"
                ) from error
        by_layer = dict(zip(called, gradients, strict=True))
        return {
            name: cotangent.new_zeros(self.shapes[name]) if (gradient := by_layer.get(name)) is None else gradient
            for name in names
        }

    @network_pass()
    def pull_between(self, layer: str, reader: str, cotangent: Tensor) -> Tensor | None:
        """J^T cotangent for the Jacobian J of the input of ``reader`` in the output of ``layer``; the graph stays.

        ``cotangent`` is shaped like the reader's input, the result like the layer's output. None means that the
        reader's input does not depend on the layer's output.
        """
        if reader not in self.sources or layer not in self.edges:
            return None
        ends = [self.sources[reader]], [self.edges[layer]]
        return torch.autograd.grad(*ends, [cotangent], retain_graph=True, allow_unused=True)[0]


class Recorder:
    """Forward hooks that note every layer's input and, with ``trace``, the places of input and output in the graph."""

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

    def tape(
        self, outputs: Tensor, shapes: Mapping[str, tuple[torch.Size, torch.Size]], keeps_graph: bool = False
    ) -> Tape:
        """The recorded pass; ``shapes`` (of a sample's input and output) serve layers that were not called."""
        for name in self.layers.keys() - self.calls.keys():
            input_shape, output_shape = shapes[name]
            self.inputs[name] = outputs.new_zeros(len(outputs), *input_shape)
            self.shapes[name] = torch.Size((len(outputs), *output_shape))
        return Tape(outputs, self.inputs, self.edges, self.shapes, self.sources, keeps_graph)

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
            # No gradient is needed before the first layer. A clone, because an in-place activation may follow.
            traced = output if output.requires_grad else output.requires_grad_().clone()
            # The edge, because an in-place activation would change the tensor's place in the graph.
            self.edges[name] = get_gradient_edge(traced)
            return traced

        return record


@contextmanager
def hooked(model: nn.Module, hooks: Mapping[str, Hook]) -> Iterator[None]:
    """Forward hooks inside the block, ahead of the user's; compiled code is off, because it skips hooks."""
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
    """Inside, code that ``torch.compile`` or ``module.compile`` has compiled runs uncompiled."""
    if "torch._dynamo" not in sys.modules:  # its import takes seconds, and nothing is compiled without it
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, so that dropout is off; afterwards every module has its own mode again."""
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
    """Inside, a Transformer calls its modules one by one, because fused modules call no hooks in evaluation mode."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def mode_readers(model: nn.Module) -> Iterator[list[nn.Module]]:
    """The modules in training mode that read their mode inside the block; the list is filled at the end of the block.

    A pass in which no such module reads its mode computes the same as in evaluation mode, for any weights.
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
    """A base that stands before a module's class and notes that the module's mode was read."""

    def __init_subclass__(cls) -> None:
        """Do not call the hook of the module's class, which may register its subclasses."""

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
