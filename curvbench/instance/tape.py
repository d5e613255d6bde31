"""Recorded forward passes: the calls that read weights, with their inputs and their places in the graph."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.utils.checkpoint import CheckpointError
from torch.utils.hooks import RemovableHandle

from curvbench.instance.contents import one_thread
from curvbench.instance.passes import network_pass
from curvbench.instance.placing import Used, as_real, densified, formed_scores, role_gradient, role_inputs
from curvbench.spec.geometry import Layer
from curvbench.uses.blocks import Plan
from curvbench.uses.calls import View
from curvbench.uses.owners import Order
from curvbench.uses.tracer import Tracer

_ROUNDING = 16  # units in the last place by which two computations of one gradient at the outputs may differ


@dataclass(frozen=True, eq=False)
class Tape:
    """One recorded forward pass: outputs (N, ..., C), and the calls that make up the scores of every role.

    ``plan``: what each call contributes to. ``roles``: the recorded roles by name; a role that the pass skipped has
    zeros. ``leaves``: the parameters as the pass read them, with the graphs of computed weights. ``keeps_graph``: no
    pull frees the graph, because the training step owns it. ``alone``: the outputs and the leaves of every sample's own
    pass, for parameters that plain autograd follows; None means that the whole batch passes for each sample. ``fits``:
    whether the pass used the parameters as the plan has it; if not, nothing can be read from the tape. ``shadow``: the
    float64 values of the outputs, whose graph is float32; None means that the outputs are their own values.
    """

    outputs: Tensor
    plan: Plan
    roles: Mapping[str, Layer]
    calls: Sequence[Used]
    leaves: Mapping[str, Tensor]
    keeps_graph: bool = False
    alone: Sequence[tuple[Tensor, Mapping[str, Tensor]]] | None = None
    fits: bool = True
    shadow: Tensor | None = None
    passed: dict[int, Tensor] = field(default_factory=dict)
    """The gradients of the survey, or of the last backward pass through ``leaf``, by number of the call.

    The gradient at the outputs has the number -1.
    """

    @property
    def samples(self) -> int:
        """The number of samples, N."""
        return len(self.outputs)

    @property
    def values(self) -> Tensor:
        """The outputs (N, ..., C) without a graph, of which cotangents are made."""
        return self.outputs.detach() if self.shadow is None else self.shadow

    @cached_property
    def used(self) -> dict[str, list[int]]:
        """The numbers of each role's calls."""
        used: dict[str, list[int]] = {}
        for number, (_, use) in enumerate(self.calls):
            if use.role is not None:
                used.setdefault(use.role, []).append(number)
        return used

    @cached_property
    def _forming(self) -> list[int]:
        """The numbers of the calls whose scores are formed."""
        return [number for number, (_, use) in enumerate(self.calls) if use.formed]

    @cached_property
    def inputs(self) -> Mapping[str, Tensor]:
        """The input of every role (N, ...), as ``geometry.patches`` takes it, made when it is read."""
        return _Inputs(
            self.plan, self.roles, [[self.calls[n] for n in self.used.get(r, [])] for r in self.roles], self.outputs
        )

    def shape(self, role: str) -> torch.Size:
        """The shape of the role's gradient, (N, ...)."""
        numbers = self.used.get(role, [])
        layer = self.roles[role]
        if len(numbers) == 1 and layer.kind in ("conv1d", "conv2d"):
            return self.calls[numbers[0]][0].shape
        return torch.Size((self.samples, *self.plan.shapes[role][1]))

    def watch(self, act: Callable[[int, Tensor], None]) -> list[RemovableHandle]:
        """Call ``act(number, gradient)`` for the gradient at every call's edge in each later backward pass.

        The nodes of the graph hold ``act``, which must therefore hold none of them, or only the garbage collector frees
        the pass.
        """

        def watched(number: int, edge: GradientEdge) -> RemovableHandle:
            output = edge.output_nr
            return edge.node.register_prehook(lambda gradients: act(number, gradients[output]))

        return [watched(number, call.edge) for number, (call, _) in enumerate(self.calls)]

    def leaf(self, note: bool = False) -> Tensor:
        """The outputs as a leaf; a gradient that reaches the leaf goes on through the tape's graph and keeps the graph.

        The loss's own backward pass would free the graph, which statistics still need. ``note`` is that of ``noted``.
        """
        leaf = self.outputs.detach().requires_grad_()
        leaf.register_hook(lambda gradient: self.go_on(gradient, note))
        return leaf

    def go_on(self, gradient: Tensor, note: bool) -> None:
        """Go on with a backward pass that has come to the outputs; the graph stays. ``note`` is that of ``noted``."""
        with self.noted(gradient, note):
            torch.autograd.backward(self.outputs, gradient, retain_graph=True)

    @contextmanager
    def noted(self, gradient: Tensor, note: bool) -> Iterator[None]:
        """Inside the block a backward pass runs along a gradient at the outputs.

        With ``note`` the gradients at all calls are kept, so that a ``pull`` along a multiple of the same gradient
        takes no pass of its own.
        """
        handles = self.watch(self.passed.__setitem__) if note else []
        self.passed.clear()
        yield
        for handle in handles:
            handle.remove()
        self.passed[-1] = gradient

    def _factor(self, cotangent: Tensor) -> Tensor | None:
        """The factor c with cotangent = c * (noted gradient); None means that the cotangent is no multiple of it."""
        noted = self.passed.get(-1)
        if len(self.passed) < 2 or noted is None or noted.shape != cotangent.shape:
            return None
        factor = (noted * cotangent).sum() / noted.square().sum()
        rounding = _ROUNDING * torch.finfo(noted.dtype).eps * cotangent.norm()
        return factor if bool((factor * noted - cotangent).norm() <= rounding) else None

    @network_pass()
    def pull(self, cotangent: Tensor, keep: bool = False, layers: Collection[str] | None = None) -> dict[str, Tensor]:
        """Gradients of the roles ``layers`` (default: all) for one cotangent (N, ..., C).

        ``keep``: the graph stays, so that another pull can follow.
        """
        names = list(self.roles if layers is None else layers)
        formed = any(name in self.plan.formed for name in names)
        numbers = [n for name in names for n in self.used.get(name, [])] + (self._forming if formed else [])
        generic = [name for name in self.plan.generic if name in names]
        at_calls = self._at_calls(numbers, cotangent, keep or self.keeps_graph or bool(generic))
        scores = self._formed(at_calls) if formed else {}
        scores |= self._generic(generic, cotangent)
        return {name: self._of_role(name, at_calls, scores) for name in names}

    @property
    def head(self) -> str | None:
        """The role of a linear layer that is called once, and whose outputs are the model's own; None without one."""
        ends = [name for name, numbers in self.used.items() if len(numbers) == 1 and self._is_end(numbers[0])]
        return ends[0] if ends and self.roles[ends[0]].kind == "linear" else None

    def _is_end(self, number: int) -> bool:
        call, use = self.calls[number]
        is_plain = call.key.operation == "linear" and use.layout == Order(0)
        return is_plain and call.shape == self.outputs.shape and call.edge.node is self.outputs.grad_fn

    @property
    def shifts_of_head(self) -> set[str]:
        """The roles of biases that the head adds, but that are no column of its matrix."""
        ends = (use.role for call, use in self.calls if call.edge.node is self.outputs.grad_fn and not call.is_matrix)
        return {role for role in ends if role is not None}

    def can_begin_below(self, role: str, names: Collection[str]) -> bool:
        """Whether passes that begin at the input of the head ``role`` reach all that the roles ``names`` read."""
        return {*self.plan.generic, *self.plan.formed, *self.shifts_of_head}.isdisjoint(names)

    def weight(self, role: str, parameters: Mapping[str, Tensor]) -> Tensor:
        """The weight (M, D) that the one call of a linear role reads, without its bias, among some parameters."""
        view = self.calls[self.used[role][0]][0].key.weight
        assert isinstance(view, View), "a computed weight has no role"
        return parameters[view.name].detach().contiguous().as_strided(view.size, view.stride, view.offset)

    def has_batched_passes(self, names: Collection[str]) -> bool:
        """Whether several cotangents may pass at once, which gains nothing where convolutions do the work."""
        generic_or_formed = {*self.plan.generic, *self.plan.formed}
        return generic_or_formed.isdisjoint(names) and all(call.window is None for call, _ in self.calls)

    @network_pass()
    def pull_block(self, cotangents: Tensor, layers: Collection[str], below: str | None = None) -> dict[str, Tensor]:
        """``pull`` for cotangents (K, N, ..., C) in one backward pass: gradients (K N, ...) of the roles ``layers``.

        None of the roles is generic or formed. The graph stays. ``below``: the cotangents, of any shape with as many
        numbers, are at the input of the one call of this role. None means that they are at the outputs.
        """
        numbers = [n for name in layers for n in self.used.get(name, [])]
        edges = [self.calls[number][0].edge for number in numbers]
        root: Tensor | GradientEdge | None = self.outputs
        if below is not None:
            call, _ = self.calls[self.used[below][0]]
            assert call.x is not None
            root, cotangents = call.source, cotangents.reshape(-1, *call.x.shape)
        gradients: Iterable[Tensor | None] = [None] * len(edges)
        if edges and self.outputs.requires_grad and root is not None:
            gradients = _batched(root, edges, cotangents)
        at_calls = {
            n: cotangents.new_zeros(len(cotangents), *self.calls[n][0].shape) if g is None else g
            for n, g in zip(numbers, gradients, strict=True)
        }
        return {name: self._block_of_role(name, at_calls, len(cotangents)) for name in layers}

    def _block_of_role(self, name: str, at_calls: Mapping[int, Tensor], count: int) -> Tensor:
        numbers = self.used.get(name, [])
        if not numbers:
            shape = self.shape(name)
            return self.outputs.new_zeros(count * shape[0], *shape[1:])
        layer, used = self.roles[name], [self.calls[number] for number in numbers]
        if all(call.key.operation != "scale" and use.layout == Order(0) for call, use in used):
            # a sample of a cotangent counts as a sample of its own, because only gradients are placed
            return role_gradient(layer, used, [at_calls[n].flatten(0, 1) for n in numbers], count * self.samples)
        by_cotangent = ([at_calls[n][k] for n in numbers] for k in range(count))
        return torch.cat([role_gradient(layer, used, gradients, self.samples) for gradients in by_cotangent])

    @network_pass()
    def at_calls(self, numbers: Sequence[int], cotangent: Tensor) -> dict[int, Tensor]:
        """The gradients at the edges of some calls, by number, each in the call's own shape; the graph stays."""
        return self._at_calls(numbers, cotangent, keep=True)

    def placed(self, tensors: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Tensors at calls, shaped like the gradients there, in the order of their roles' gradients.

        A role that no call uses has zeros; a role with a call that has no tensor is left out.
        """
        complete = [name for name in self.roles if all(number in tensors for number in self.used.get(name, []))]
        return {name: self._of_role(name, tensors, {}) for name in complete}

    def _at_calls(self, numbers: Sequence[int], cotangent: Tensor, keep: bool) -> dict[int, Tensor]:
        """The gradient at the edge of each call; zeros where the outputs do not depend on the call."""
        edges = [self.calls[number][0].edge for number in numbers]
        gradients: Iterable[Tensor | None]
        if (factor := self._factor(cotangent)) is not None:
            gradients = [factor * self.passed[n] if n in self.passed else None for n in numbers]
        elif not edges or not self.outputs.requires_grad:
            gradients = [None] * len(numbers)
        else:
            try:
                gradients = torch.autograd.grad(self.outputs, edges, cotangent, retain_graph=keep, allow_unused=True)
            except CheckpointError as error:
                raise ValueError(
                    "the model runs a part of itself again in its backward pass (torch.utils.checkpoint), where its "
                    "weights are not those that are measured: switch checkpointing off"
                ) from error
        shapes = [self.calls[number][0].shape for number in numbers]
        return {
            number: cotangent.new_zeros(shape) if gradient is None else gradient
            for number, gradient, shape in zip(numbers, gradients, shapes, strict=True)
        }

    def _of_role(self, name: str, at_calls: Mapping[int, Tensor], scores: Mapping[str, Tensor]) -> Tensor:
        layer, numbers = self.roles[name], self.used.get(name, [])
        if name in self.plan.formed:
            score = scores.get(name)
            return self.outputs.new_zeros(self.shape(name)) if score is None else score[:, None, :, None]
        if not numbers:
            return self.outputs.new_zeros(self.shape(name))
        used = [self.calls[number] for number in numbers]
        return role_gradient(layer, used, [at_calls[number] for number in numbers], self.samples)

    def _formed(self, at_calls: Mapping[int, Tensor]) -> dict[str, Tensor]:
        numbers = self._forming
        used = [self.calls[number] for number in numbers]
        return formed_scores(used, [at_calls[number] for number in numbers], self.leaves, self.samples)

    def _generic(self, names: Sequence[str], cotangent: Tensor) -> dict[str, Tensor]:
        """The scores of some parameters by plain autograd, (N, numel) each: the cotangent of one sample at a time.

        This is exact for samples that are coupled too: a sample's score is the derivative of its own terms.
        """
        if not names or not self.outputs.requires_grad:
            return {}
        if self.alone is not None:
            columns = [
                _gradients(outputs, [leaves[name] for name in names], cotangent[n : n + 1])
                for n, (outputs, leaves) in enumerate(self.alone)
            ]
        else:
            own = [self.leaves[name] for name in names]
            columns = [_gradients(self.outputs, own, one) for one in _one_at_a_time(cotangent)]
        return {
            name: torch.stack(c).reshape(self.samples, -1)
            for name, c in zip(names, zip(*columns, strict=True), strict=True)
        }

    @network_pass()
    def pull_between(self, call: int, reader: int, cotangent: Tensor) -> Tensor | None:
        """J^T cotangent for the Jacobian J of the input of the call ``reader`` in the output of ``call``.

        The graph stays. ``cotangent`` is shaped like the reader's input, the result like the call's output. None means
        that the reader's input does not depend on the call's output.
        """
        source = self.calls[reader][0].source
        if source is None:
            return None
        ends = [source], [self.calls[call][0].edge]
        return torch.autograd.grad(*ends, [cotangent], retain_graph=True, allow_unused=True)[0]


def _batched(root: Tensor | GradientEdge, edges: Sequence[GradientEdge], cotangents: Tensor) -> list[Tensor | None]:
    """The gradients at edges for each of K cotangents at a root, (K, ...); the graph stays."""

    def pulled(along: Tensor, is_batched: bool) -> Sequence[Tensor | None]:
        return torch.autograd.grad(
            (root,),  # type: ignore[arg-type]  # one of either kind
            edges,
            (along,),
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=is_batched,
        )

    try:
        return list(pulled(cotangents, True)) if len(cotangents) > 1 else _with_one(pulled(cotangents[0], False))
    except RuntimeError as error:  # some operations have no batched derivative
        if isinstance(error, torch.OutOfMemoryError):
            raise
    columns = [pulled(cotangent, False) for cotangent in cotangents]
    return [None if at[0] is None else torch.stack(at) for at in zip(*columns, strict=True)]


def _with_one(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if gradient is None else gradient[None] for gradient in gradients]


def _gradients(outputs: Tensor, leaves: Sequence[Tensor], cotangent: Tensor) -> Sequence[Tensor]:
    if not outputs.requires_grad:
        return [as_real(torch.zeros_like(leaf)) for leaf in leaves]
    gradients = torch.autograd.grad(
        outputs, leaves, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return [as_real(densified(gradient)) for gradient in gradients]


def _one_at_a_time(cotangent: Tensor) -> Iterator[Tensor]:
    """The cotangent of one sample after the other, with zeros for all others."""
    for n in range(len(cotangent)):
        only = torch.zeros_like(cotangent)
        only[n] = cotangent[n]
        yield only


class Recording(NamedTuple):
    """A pass that is being recorded: what follows the parameters, and the parameters as the pass reads them."""

    tracer: Tracer
    leaves: Mapping[str, Tensor]

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Inside the block, which holds the pass, the parameters are followed and nothing runs compiled."""
        with one_thread(), uncompiled(), self.tracer:
            yield


class _Inputs(Mapping[str, Tensor]):
    """The inputs of a tape's roles, each made once, when it is read.

    It does not hold the tape, which would keep the pass in memory until the garbage collector comes.
    """

    def __init__(self, plan: Plan, roles: Mapping[str, Layer], used: Sequence[Sequence[Used]], outputs: Tensor) -> None:
        self._plan, self._roles, self._outputs = plan, roles, outputs.detach()
        self._used, self._made = dict(zip(roles, used, strict=True)), dict[str, Tensor]()

    def __getitem__(self, role: str) -> Tensor:
        if role not in self._made:
            self._made[role] = self._make(role)
        return self._made[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self._roles)

    def __len__(self) -> int:
        return len(self._roles)

    def _make(self, role: str) -> Tensor:
        layer, used, samples = self._roles[role], self._used[role], len(self._outputs)
        if used or layer.kind == "vector":
            return role_inputs(layer, used, samples, self._outputs)
        shape, is_index = self._plan.shapes[role][0], layer.kind == "lookup"
        dtype = torch.int64 if is_index else self._outputs.dtype
        return self._outputs.new_full((samples, *shape), -1 if is_index else 0, dtype=dtype)


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
