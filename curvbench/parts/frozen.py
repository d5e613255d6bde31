"""Optimizers of torch between two steps: frozen without their parameters, and thawed for one step anywhere.

``copy.deepcopy`` of an optimizer loses every field but its groups and its state (``Optimizer.__getstate__``). Here all
fields are copied, with a placeholder for each parameter, so that a frozen optimizer holds no parameter.
"""

from __future__ import annotations

import copy
import inspect
import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from curvbench.instance.contents import RandomStates
from curvbench.words import one_line

Factory = Callable[..., Optimizer]
"""Makes an optimizer from a list of parameters and its options."""

TRIED = 12  # steps of a trial: some optimizers refresh at every tenth step, and fail there in float64


class Slot:
    """Stands for a parameter, or for the optimizer itself, in the fields of a frozen optimizer."""


class Aside:
    """Holds what is no memory of an optimizer, where the meters of memory do not look: an object with slots."""

    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held


@dataclass(frozen=True)
class Frozen:
    """An optimizer before a step: its class, its fields, the slots of its parameters and itself, the generators.

    ``views``: for each parameter the storage that stands for the parameter's own in the fields. None means that no
    field is a view of the parameter. ``dtype``: that of the parameters.
    """

    kind: type[Optimizer]
    fields: dict[str, Any]
    slots: tuple[Slot, ...]
    views: tuple[torch.UntypedStorage | None, ...]
    dtype: torch.dtype
    random: Aside

    @classmethod
    def of(cls, optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> Frozen:
        """A copy of every field; raises TypeError if a field cannot be copied."""
        slots = tuple(Slot() for _ in range(len(parameters) + 1))
        for parameter in parameters:
            parameter.grad = None
        memo: dict[Any, Any] = {id(own): slot for own, slot in zip((*parameters, optimizer), slots, strict=True)}
        try:
            fields = copy.deepcopy(optimizer.__dict__, memo)
        except (TypeError, RuntimeError, AttributeError) as error:
            raise TypeError(f"its state cannot be copied: {one_line(error, 120)}") from error
        copies = memo.get("torch", {})  # where torch notes the copies of storages
        views = tuple(copies.get(parameter.untyped_storage()._cdata) for parameter in parameters)
        for view in filter(None, views):
            view.resize_(0)  # a placeholder without bytes
        random = Aside(RandomStates.now(parameters[0].device))
        return cls(type(optimizer), fields, slots, views, parameters[0].dtype, random)

    def thaw(self, parameters: Sequence[nn.Parameter]) -> Optimizer:
        """The optimizer of other parameters, in their dtype what was in that of its own parameters."""
        optimizer: Optimizer = self.kind.__new__(self.kind)
        memo: dict[Any, Any] = {id(s): own for s, own in zip(self.slots, (*parameters, optimizer), strict=True)}
        pairs = zip(self.views, parameters, strict=True)
        memo["torch"] = {view._cdata: own.untyped_storage() for view, own in pairs if view is not None}
        for _, tensor in named(self.fields["state"]):
            if tensor.dtype == self.dtype != parameters[0].dtype:
                memo[id(tensor)] = tensor.to(parameters[0].dtype)
        optimizer.__dict__.update(copy.deepcopy(self.fields, memo))
        return optimizer


class Moved(NamedTuple):
    """Parameters before and after a step, and the learning rate of each."""

    starts: list[Tensor]
    ends: list[Tensor]
    rates: list[float]

    def steps(self) -> list[Tensor]:
        """What the step has subtracted from each parameter, per unit of its learning rate."""
        return [(start - end) / rate for start, end, rate in zip(*self, strict=True)]


def begin(factory: Factory, options: Mapping[str, Any], points: Sequence[Tensor], seed: int) -> Frozen:
    """The optimizer before its first step, without weight decay.

    Raises:
        ValueError: the factory refuses the options or the parameters, or its optimizer cannot be frozen.
    """
    parameters = [nn.Parameter(point.clone(), requires_grad=False) for point in points]
    with _quiet(), _seeded(seed, points[0].device):
        try:
            optimizer = factory(parameters, **options)
        except Exception as error:  # a factory of a user's
            raise ValueError(one_line(error, 200)) from error
        refuse(optimizer)
        for group in optimizer.param_groups:
            if "weight_decay" in group:
                group["weight_decay"] = 0.0
            if not 0 < float(group.get("lr", 1.0)) < math.inf:
                rate = group["lr"]
                raise ValueError(f"lr must be above 0 and finite, because steps are read per unit of it, got {rate}")
        return Frozen.of(optimizer, parameters)


class Thawed:
    """A frozen optimizer at work: it takes steps at fixed points, in their dtype, and can be frozen again."""

    def __init__(self, frozen: Frozen, points: Sequence[Tensor]) -> None:
        self.points = list(points)
        self.parameters = [nn.Parameter(point.clone(), requires_grad=False) for point in points]
        self.optimizer = frozen.thaw(self.parameters)
        self._gradients: list[Tensor] = []
        self._random: RandomStates = frozen.random.held

    def put(self, gradients: Sequence[Tensor]) -> None:
        """Set the parameters to the points, and note the gradients of the steps that follow."""
        for parameter, point in zip(self.parameters, self.points, strict=True):
            parameter.copy_(point)
        pairs = zip(gradients, self.parameters, strict=True)
        self._gradients = [g.to(p.dtype).clone(memory_format=torch.contiguous_format) for g, p in pairs]

    def go(self) -> None:
        """One step from where the parameters are."""
        for parameter, gradient in zip(self.parameters, self._gradients, strict=True):
            parameter.grad = gradient  # some optimizers take it away in their step
        with _quiet():
            self.optimizer.step()

    def step(self, gradients: Sequence[Tensor]) -> Moved:
        """One step from the points."""
        self.put(gradients)
        groups = self.optimizer.param_groups
        rates = {id(p): float(group.get("lr", 1.0)) for group in groups for p in group["params"]}
        with self._drawing():
            self.go()
        ends = [parameter.detach().clone() for parameter in self.parameters]
        return Moved(self.points, ends, [rates.get(id(p), 1.0) for p in self.parameters])

    def freeze(self) -> Frozen:
        """The optimizer as it is now."""
        with self._drawing():
            return Frozen.of(self.optimizer, self.parameters)

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Inside, the generators continue from where the optimizer left them; outside they are as they were."""
        device = self.points[0].device
        before = RandomStates.now(device)
        self._random.restore(device)
        try:
            yield
            self._random = RandomStates.now(device)
        finally:
            before.restore(device)


def refuse(optimizer: Any) -> None:
    """Raise ValueError for what is no optimizer of torch, needs a closure, or wraps another optimizer."""
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"it gives no torch.optim.Optimizer but {type(optimizer).__name__}")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError("its step needs a closure, which evaluates the loss at other parameters")
    if others := [type(value).__name__ for value in vars(optimizer).values() if isinstance(value, Optimizer)]:
        raise ValueError(f"it wraps another optimizer, {others[0]}: give that one")


class Trial(NamedTuple):
    """What a trial has found: the widest dtype in which the optimizer runs; whether its steps depend on parameters."""

    dtype: torch.dtype
    depends: bool


def attempt(factory: Factory, options: Mapping[str, Any]) -> Trial:
    """``TRIED`` steps on small parameters at two places, by which copies of parameters in the state are seen.

    Raises:
        ValueError: the options are wrong, or the optimizer cannot be frozen; the text says why.
    """
    reasons = []
    for dtype in (torch.float64, torch.float32):
        for shapes in (((4, 3), (4,)), ((4, 3),)):  # some optimizers take matrices alone
            try:
                return Trial(dtype, _depends(factory, options, shapes, dtype))
            except Exception as error:  # of an optimizer of a user's anything
                reasons.append(one_line(error, 200))
    raise ValueError(reasons[0])


def _depends(factory: Factory, options: Mapping[str, Any], shapes: Sequence[Any], dtype: torch.dtype) -> bool:
    """Whether steps depend on the parameters; raises ValueError if the state holds copies of them."""
    draws = torch.Generator().manual_seed(0)
    _step_of_leaves(factory, options, [torch.ones(shape, dtype=dtype, device="cpu") for shape in shapes])
    points, shifts = (
        [torch.randn(shape, device="cpu", generator=draws).to(dtype) for shape in shapes] for _ in range(2)
    )
    places = [points, [point + shift for point, shift in zip(points, shifts, strict=True)]]
    here, there = (Thawed(begin(factory, options, place, 0), place) for place in places)
    steps: list[Tensor] = []
    for count in range(TRIED):
        gradients = [torch.randn(shape, device="cpu", generator=draws).to(dtype) for shape in shapes]
        steps = [torch.cat([step.flatten() for step in of.step(gradients).steps()]) for of in (here, there)]
        if count in (0, TRIED - 1) and (name := _copied(here.freeze(), there.freeze(), shifts)):
            raise ValueError(f"its state holds copies of the parameters ({name}), which a step at fixed ones belies")
    rounding = 1e-6 if dtype == torch.float64 else 1e-2
    return not float((steps[0] - steps[1]).norm()) <= rounding * float(steps[0].norm())


def _step_of_leaves(factory: Factory, options: Mapping[str, Any], points: Sequence[Tensor]) -> None:
    """One step of parameters as a model has them, which fails where a step differentiates the gradient.

    The parameters of all other steps require no gradient, because views of leaves could not be copied.
    """
    leaves = [nn.Parameter(point) for point in points]
    with _quiet(), _seeded(0, points[0].device):
        optimizer = factory(leaves, **options)
        refuse(optimizer)
        for leaf in leaves:
            leaf.grad = torch.ones_like(leaf)
        optimizer.step()


def _copied(here: Frozen, there: Frozen, shifts: Sequence[Tensor]) -> str:
    """The name of a tensor that has moved along with the parameters from one place to the other; empty if none has."""
    of_parts = {shift.numel(): shift.flatten().double() for shift in shifts}
    of_all = torch.cat(list(of_parts.values()))
    shift_of = {**of_parts, len(of_all): of_all}
    for (name, a), (_, b) in zip(named(here.fields), named(there.fields), strict=False):
        is_view = not a.untyped_storage().nbytes()
        if is_view or a.shape != b.shape or not a.is_floating_point() or a.numel() not in shift_of:
            continue
        change, shift = (b - a).flatten().double(), shift_of[a.numel()]
        if float(change @ shift) > 0.9 * float(change.norm() * shift.norm()) > 0:
            return name
    return ""


def named(tree: Any, name: str = "", seen: tuple[int, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    """The tensors in mappings, sequences and attributes, each with the nearest name above it."""
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from named(value, key if isinstance(key, str) else name, seen)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from named(value, name, seen)
    elif id(tree) not in seen and not isinstance(tree, type):
        yield from named(getattr(tree, "__dict__", {}), name, (*seen, id(tree)))


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, every generator begins with the seed; outside they are as they were."""
    before = RandomStates.now(device)
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        before.restore(device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, steps run uncompiled, record no graph, and warn of nothing."""
    with warnings.catch_warnings(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        warnings.simplefilter("ignore")
        yield
