"""Passes of a training loop through the model: what they take in, their record, and the gradient at their outputs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from curvbench.instance import Inputs, Instance
from curvbench.instance.contents import Contents, RandomStates, leaves
from curvbench.instance.outputs import Returned
from curvbench.instance.passes import autocasts
from curvbench.instance.tape import Recording, Tape, mode_readers

Statistics = Literal["auto", "evaluation", "training"]


@dataclass(eq=False)
class Pass:
    """A pass whose gradient tells its loss terms.

    ``outputs``: what the model gave, detached. ``tape``: the record of the pass; None means that statistics make a pass
    of their own. ``states``: the random states of the pass, if statistics repeat it in its mode. ``watched``: the
    tensors by name that must not change before ``step``, and ``contents``, what they held. ``step``: the number of
    steps before the pass. ``gradient``: the sum of what backward passes have sent to the outputs. ``task``: the number
    of the last of them.
    """

    inputs: Inputs
    outputs: Returned
    tape: Tape | None
    states: RandomStates | None
    watched: Mapping[str, Any]
    contents: Contents
    step: int
    gradient: Tensor | None = None
    task: int = -1

    def take(self, gradient: Tensor) -> None:
        """Add a gradient that a backward pass has sent to the outputs."""
        self.gradient = gradient if self.gradient is None else self.gradient + gradient
        self.task = current_task()

    def pulled(self, sources: Sequence[Tensor], note: bool, gradient: Tensor) -> Sequence[Tensor | None]:
        """The gradients of tensors that the record's graph begins with; raises ValueError if it has been closed.

        Hooks of these tensors are off, because they run when the gradients arrive there.
        """
        if self.tape is None:
            raise ValueError("step() has let go of the graph of these outputs: call the model again")
        twice = torch.is_grad_enabled()
        with self.tape.noted(gradient, note), _without_hooks(sources):
            return torch.autograd.grad(
                self.tape.outputs, sources, gradient, retain_graph=True, create_graph=twice, allow_unused=True
            )

    def close(self) -> None:
        """Let go of the graph, which the outputs that a loop holds on to would keep."""
        self.tape = None


def kept(seen: Pass, arrive: Callable[[Tensor], None], note: bool) -> Tensor:
    """The outputs of a recorded pass; a backward pass from them calls ``arrive`` and keeps the record's graph."""
    assert seen.tape is not None
    sources = _sources(seen.tape.outputs, [x for _, x in leaves(seen.inputs) if isinstance(x, Tensor)])

    def back(gradient: Tensor) -> Sequence[Tensor | None]:
        arrive(gradient)
        return seen.pulled(sources, note, gradient)

    outputs: Tensor = _Kept.apply(back, seen.tape.outputs.detach(), *sources)  # type: ignore[no-untyped-call]
    return outputs


class _Kept(torch.autograd.Function):
    """A tensor with a graph of its own behind it, which ``back`` goes through; ``sources`` are where it begins."""

    @staticmethod
    def forward(ctx: Any, back: Callable[[Tensor], Sequence[Tensor | None]], outputs: Tensor, *sources: Tensor) -> Any:
        ctx.back = back
        return outputs.view_as(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, None, *ctx.back(gradients[0])


def _sources(outputs: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that a graph begins with: its leaves, and inputs that have a graph of their own."""
    computed = {x.grad_fn: x for x in inputs if x.grad_fn is not None}
    found: list[Tensor] = []
    seen, ahead = set[Any](), [outputs.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in computed:
            found.append(computed[node])
        elif type(node).__name__ == "AccumulateGrad":
            found.append(node.variable)  # type: ignore[attr-defined]
        else:
            ahead += [following for following, _ in node.next_functions]
    return found


@contextmanager
def _without_hooks(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Inside, hooks of these tensors do not run."""
    all_hooks = [hooks for tensor in tensors if (hooks := tensor._backward_hooks)]
    held = [dict(hooks) for hooks in all_hooks]
    for hooks in all_hooks:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, before in zip(all_hooks, held, strict=True):
            hooks.update(before)


def accumulates(parameters: Iterable[Tensor]) -> bool:
    """Whether the backward pass that runs adds to the gradient of a parameter; ``torch.autograd.grad`` does not."""
    return any(_is_reached(get_gradient_edge(p).node) for p in parameters if p.requires_grad)


def _is_reached(node: Any) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # what torch says of a leaf in autograd.grad
        return False


def current_task() -> int:
    """The number of the backward pass that runs."""
    return torch._C._current_graph_task_id()


class Opened(NamedTuple):
    """A pass that is running: the frame of the model's call, its inputs, and what is open until its end.

    ``frame``: None in compiled code. ``recording``: what follows the parameters. ``readers``: the modules that have
    read their mode, known at the end.
    """

    frame: FrameType | None
    inputs: Inputs
    stack: ExitStack
    states: RandomStates | None
    recording: Recording | None
    readers: list[nn.Module]

    @property
    def is_running(self) -> bool:
        """Whether the pass still runs in this thread; one that was interrupted never comes to its end."""
        return any(frame is self.frame for frame in _frames())


def _frames() -> Iterator[FrameType]:
    """The frames of this thread in which a module is called, innermost first."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is nn.Module._call_impl.__code__:
            yield frame
        frame = frame.f_back


def open_pass(model: nn.Module, inputs: Inputs, instance: Instance | None, statistics: Statistics) -> Opened:
    """Begin a pass of the model, which is recorded if ``instance`` can take its statistics from it."""
    frame = next(_frames(), None)
    states = RandomStates.now(_device(model)) if statistics == "training" else None
    samples = None if instance is None or not may_share(instance, statistics) else instance.samples_like(inputs)
    with ExitStack() as stack:
        if instance is None or samples is None:
            return Opened(frame, inputs, stack.pop_all(), states, None, [])
        readers = stack.enter_context(mode_readers(model))
        recording = instance.recording(samples)
        stack.enter_context(recording.followed())
        return Opened(frame, inputs, stack.pop_all(), states, recording, readers)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def may_share(instance: Instance, statistics: Statistics) -> bool:
    """Whether statistics can come from a pass of the model as it is, if it computes what they want."""
    is_plain = instance.is_plain and instance.returns_outputs
    return statistics != "evaluation" and is_plain and instance.runs_as_it_is and not autocasts()


def tape_of(opened: Opened, returned: Any, instance: Instance | None, statistics: Statistics) -> Tape | None:
    """The record of a pass that has ended; None if statistics cannot come from it."""
    if opened.recording is None or instance is None or (statistics == "auto" and opened.readers):
        return None
    if not isinstance(returned, Tensor) or returned.grad_fn is None or len(returned) != opened.recording.tracer.samples:
        return None
    tape = instance.recorded(opened.recording, returned)
    return tape if tape.fits else None
