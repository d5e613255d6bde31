"""Recording a forward pass: what each layer read, and where its output stands in the graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from curvbench.passes import network_pass
from curvbench.spec import Layer

Hook = Callable[[nn.Module, tuple[Any, ...], Any], Any]


@dataclass(frozen=True)
class Tape:
    """One recorded forward pass: outputs (N, ..., C) and per layer its input and its output's place in the graph.

    Mappings are in the order of the calls. ``sources`` holds the place of a layer's input in the graph; a layer whose
    input depends on no other layer has none. The graph of a ``kept`` tape is somebody else's, and no pull frees it.
    """

    outputs: Tensor
    inputs: Mapping[str, Tensor]
    edges: Mapping[str, GradientEdge]
    shapes: Mapping[str, torch.Size]
    sources: Mapping[str, GradientEdge]
    kept: bool = False

    @network_pass()
    def pull(self, cotangent: Tensor, keep: bool = False, layers: Collection[str] | None = None) -> dict[str, Tensor]:
        """Gradients at the outputs of ``layers`` (default: all) for one cotangent (N, ..., C).

        ``keep`` allows another pull.
        """
        names = list(self.edges if layers is None else layers)
        edges = [self.edges[name] for name in names]
        found = torch.autograd.grad(self.outputs, edges, cotangent, retain_graph=keep or self.kept, allow_unused=True)
        return {
            name: cotangent.new_zeros(self.shapes[name]) if gradient is None else gradient
            for name, gradient in zip(names, found, strict=True)
        }

    @network_pass()
    def pull_between(self, layer: str, reader: str, cotangent: Tensor) -> Tensor | None:
        """J^T cotangent for the Jacobian J of the input of ``reader`` in the output of ``layer``; the graph is kept.

        ``cotangent`` is shaped like the reader's input, the result like the layer's output; None without a path.
        """
        if reader not in self.sources:
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

    def overwritten(self) -> list[str]:
        """Layers whose input was modified in place after they had read it."""
        return [name for name, x in self.inputs.items() if x._version != self._versions[name]]

    def _hook(self, name: str) -> Hook:
        def record(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            self.calls[name] += 1
            x = args[0].detach()
            self.inputs[name] = x.clone() if name in self.cloned else x
            self._versions[name] = x._version
            self.shapes[name] = output.shape
            if not self.trace:
                return None
            if args[0].requires_grad:
                self.sources[name] = get_gradient_edge(args[0])
            # Nothing before the first layer needs a gradient. A clone, for an in-place activation may follow.
            traced = output if output.requires_grad else output.requires_grad_().clone()
            # The edge, not the tensor: an in-place activation would move the tensor behind itself.
            self.edges[name] = get_gradient_edge(traced)
            return traced

        return record


@contextmanager
def hooked(model: nn.Module, hooks: Mapping[str, Hook]) -> Iterator[None]:
    """Forward hooks by module name, ahead of the user's own, gone afterwards."""
    handles = [model.get_submodule(name).register_forward_hook(hook, prepend=True) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
