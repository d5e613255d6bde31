"""Any ``torch.optim.Optimizer`` as a probe: warmed up at fixed parameters, frozen, and asked for steps.

The optimizer takes ``updates`` steps, and the parameters are set back after each. Its state is then frozen; the step
for a gradient is what one more step would subtract from the parameters per unit of the learning rate. Weight decay is
set to 0 before the first step.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from curvbench import states
from curvbench.instance import Instance
from curvbench.operators import Operator
from curvbench.parts import frozen
from curvbench.parts.frozen import Aside, Factory, Frozen, Moved, Thawed, Trial
from curvbench.parts.linearity import MOST_COLUMNS, Character, Map, Reading, character, inverse, read
from curvbench.parts.ranges import at_least_one
from curvbench.registry import patience
from curvbench.registry.fields import literal, refuse_unknown
from curvbench.registry.fields import read as read_field
from curvbench.registry.files import OPTIMIZER, load_file, loaded_by_path, on_one_line
from curvbench.spec import About, NoMatrix, Probe, Row, Unsupported
from curvbench.spec.components import as_text
from curvbench.spec.fields import types_of
from curvbench.words import near_misses, one_line


class State(NamedTuple):
    """The frozen optimizer, and the instance at whose parameters it steps.

    ``moved``: the last step, None after ``fit``. ``character``: a function that measures the character of the steps.
    What is ``Aside`` belongs to the model or to the reading, not to the memory of the optimizer.
    """

    frozen: Frozen
    place: Aside
    moved: Aside
    character: Aside


@dataclass(frozen=True)
class TorchOptim(Probe):
    """The step of an optimizer of torch, warmed up at fixed parameters and then frozen.

    ``factory``: the class or function that makes the optimizer from a list of parameters, as ``MODULE.NAME`` or
    ``FILE.py:NAME``. ``options``: pairs of names and values that the factory takes. ``reading``: the map from gradient
    to step. ``asis`` is the step as trained, with momentum. ``affine`` leaves out the step for a zero gradient.
    ``slope`` is the derivative of the step at a zero gradient, with the state kept. Costs are those of the step as it
    is, whatever the reading. ``updates``: the number of steps of
    the warm-up. ``period``: the number of steps after which the optimizer repeats its work, as those that refresh at
    every tenth step; costs come for the least, the most and the mean step of a period. ``seed``: the seed with which
    the generators of torch, Python and numpy begin.
    """

    factory: str = "torch.optim.SGD"
    options: tuple[tuple[str, Any], ...] = ()
    reading: Reading = "asis"
    updates: int = 31
    batch_size: int | None = None
    period: int = 1
    seed: int = 0

    statistic = "bg_data"
    has_own_momentum: ClassVar[bool] = True
    combines_by = "gradient"
    about = About(
        represents="the inverse of the slope of the step, if the slope is linear, symmetric and positive",
        source="the optimizer's own code",
        notes=(
            "FLOPs and seconds are those of step(), uncompiled; what `precondition` costs is to read the step off the "
            "parameters. Peak memory holds a copy of the state. Weight decay is off.",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "updates", "batch_size", "period")
        if not re.fullmatch(r".+\.py:\w+|\w+(\.\w+)+", self.factory):
            raise ValueError(f"no optimizer {self.factory!r}: expected {OPTIMIZER}MODULE.NAME, or FILE.py:NAME")
        if not missing(self.factory):
            _tried(self.factory, self.options)

    @classmethod
    def of(cls, factory: str, values: Mapping[str, Any]) -> TorchOptim:
        """The probe of a factory with hyperparameters of both: the probe's own, and options of the optimizer.

        Raises:
            ValueError: a name is unknown, a value is wrong, or the optimizer cannot be frozen.
        """
        options = {key: value for key, value in values.items() if key not in OWN}
        known = None if missing(factory) else _option_names(resolve(factory))
        for key, value in options.items():
            if known is not None:
                refuse_unknown(factory, key, dict.fromkeys([*known, *OWN]))
            if literal(as_text(value)) != value:
                raise ValueError(f"{factory}: {key}={value!r} has no text: set it in a function of yours")
        own = {key: value for key, value in values.items() if key in OWN}
        try:
            return cls(factory, tuple(options.items()), **own)
        except ValueError as error:
            text = one_line(error)
            raise ValueError(text if factory in text else f"{factory}: {text}") from error

    @classmethod
    def read(cls, factory: str, texts: Mapping[str, str]) -> TorchOptim:
        """The probe of a factory with hyperparameters as ``-p`` gives them; raises ValueError as ``of`` does."""
        types = types_of(cls)
        values = {k: read_field(f"{factory}: {k}", t, types[k]) if k in OWN else literal(t) for k, t in texts.items()}
        return cls.of(factory, values)

    @property
    def name(self) -> str:
        return self.factory.rpartition(":")[2] if ":" in self.factory else f"{OPTIMIZER}{self.factory}"

    @property
    def selector(self) -> str:
        """The name by which ``parse_probe`` finds the factory, which is a path for a factory in a file."""
        return self.factory if ":" in self.factory else self.name

    @property
    def dtype(self) -> torch.dtype:
        """The widest dtype in which the optimizer runs."""
        return self._trial.dtype

    @property
    def hyperparameters(self) -> dict[str, Any]:
        return dict(self.options) | {name: getattr(self, name) for name in OWN}

    @property
    def arguments(self) -> str:
        changed = [(name, getattr(self, name)) for name in OWN if getattr(self, name) != getattr(type(self), name)]
        return ",".join(f"{name}={as_text(value)}" for name, value in [*self.options, *changed])

    @property
    def other_sources(self) -> tuple[Path, ...]:
        """The file that defines the factory, whose code decides numbers too; none if the package is not installed."""
        if missing(self.factory):
            return ()
        return (Path(inspect.getfile(inspect.unwrap(resolve(self.factory)))).absolute(),)

    def unsupported(self, instance: Instance) -> str | None:
        if reason := missing(self.factory):
            return reason
        if any(parameter.is_complex() for parameter in instance.parameters.values()):
            return f"{self.name} is measured on real parameters only"
        if instance.dtype.itemsize < 4:
            return f"steps are read in float32 or float64, not in {str(instance.dtype).removeprefix('torch.')}"
        try:
            self.init(instance)
        except ValueError as error:
            return str(error)
        return None

    def init(self, instance: Instance) -> State:
        points = self._points(instance)
        return self._state(frozen.begin(resolve(self.factory), dict(self.options), points, self.seed), instance)

    def update(self, state: State, batch: Instance) -> State:
        thawed = Thawed(state.frozen, self._points(batch))
        moved = thawed.step(list(batch.unpack(batch.gradient()).values()))
        return self._state(thawed.freeze(), batch, moved)

    def fit(self, instance: Instance) -> State:
        """The state after the warm-up, which a query for a gradient does not change."""
        if self.batch_size is not None and self.batch_size > instance.samples:
            raise Unsupported(f"batch_size={self.batch_size} is more than the {instance.samples} samples there are")
        thawed = Thawed(self.init(instance).frozen, self._points(instance))
        for count in range(self.updates):
            batch = instance if self.batch_size is None else instance.draw(self.batch_size, seed=count)
            thawed.step(list(batch.unpack(batch.gradient()).values()))
        return self._state(thawed.freeze(), instance)

    def precondition(self, state: State, gradient: Tensor) -> Tensor:
        if state.moved.held is not None:  # of a training, whose step was made of this gradient
            return _packed(state.place.held, state.moved.held).to(gradient.dtype)
        step, dtype = self._query(state.frozen, state.place.held)
        return read(step, self.reading)(gradient.to(dtype)).to(gradient.dtype)

    def operator(self, state: State) -> Operator:
        """The matrix whose inverse is the slope; raises NoMatrix if there is none."""
        place, of = state.place.held, state.character.held()
        if of.no_matrix:
            raise NoMatrix(of.no_matrix)
        step, dtype = self._query(state.frozen, place)
        like = torch.zeros(place.size, dtype=dtype, device=place.device)
        operator = inverse(read(step, "slope"), like, of.scale)
        if operator is None:
            raise NoMatrix(f"no matrix: it is not diagonal, and made for at most {MOST_COLUMNS:,} parameters")
        return states.cast(operator, lambda _: place.dtype)

    def damped(self, state: State) -> Operator | None:
        """The matrix itself if the step is read as the slope and has one."""
        try:
            return self.operator(state) if self.reading == "slope" else None
        except NoMatrix:
            return None

    def in_place(self, state: State, batch: Instance) -> Callable[[], object]:
        """One more step of the thawed optimizer, as a training loop takes it."""
        thawed = Thawed(state.frozen, self._points(batch))
        thawed.put(list(batch.unpack(batch.gradient()).values()))
        return thawed.go

    def remark(self, state: State) -> str:
        of = state.character.held()
        single = " in float32, beyond which it does not run" if of.dtype == torch.float32 else ""
        return f"read {self.reading}{single}: {of.verdict}"

    def own_rows(self, state: State) -> Iterable[Row]:
        return state.character.held().rows()

    @property
    def _trial(self) -> Trial:
        return _tried(self.factory, self.options)

    def _points(self, instance: Instance, dtype: torch.dtype | None = None) -> list[Tensor]:
        """The parameters at which the optimizer steps; zeros, which round nothing off, if the step does not depend."""
        narrow = self.dtype.itemsize < instance.dtype.itemsize
        own = dtype or (self.dtype if narrow else instance.dtype)
        names = instance.unpack(torch.zeros(instance.size, dtype=instance.dtype, device=instance.device))
        points = [instance.parameters[name].detach().to(own) for name in names]
        return points if self._trial.depends else [torch.zeros_like(point) for point in points]

    def _state(self, before: Frozen, instance: Instance, moved: Moved | None = None) -> State:
        @functools.cache
        def measured() -> Character:
            step, dtype = self._query(before, instance)
            gradient, *others = (g.to(dtype) for g in (instance.gradient(), *self._others(instance)))
            return character(step, gradient, others)

        return State(before, Aside(instance), Aside(moved), Aside(measured))

    def _query(self, before: Frozen, place: Instance) -> tuple[Map, torch.dtype]:
        """The step of the frozen optimizer for a gradient, and the widest dtype in which all of it runs."""
        kept = [t for _, t in frozen.named(before.fields["state"]) if t.ndim and t.is_floating_point()]
        is_narrow = before.dtype == torch.float64 and any(t.dtype.itemsize < 8 for t in kept)
        dtype = torch.float32 if is_narrow else self.dtype if self._widens(before, place) else before.dtype
        points = self._points(place, dtype)

        def step(gradient: Tensor) -> Tensor:
            moved = Thawed(before, points).step(list(place.unpack(gradient).values()))
            return _packed(place, moved).to(gradient.dtype)

        return step, dtype

    def _widens(self, before: Frozen, place: Instance) -> bool:
        """Whether a frozen optimizer also runs in the widest dtype: views have no other, and some code casts to one."""
        if any(view is not None for view in before.views):
            return False
        points = self._points(place, self.dtype)
        try:
            Thawed(before, points).step([torch.zeros_like(point) for point in points])
        except RuntimeError:
            return False
        return True

    def _others(self, instance: Instance) -> tuple[Tensor, Tensor]:
        """Gradients of two other batches; the halves of the batch's gradient if it cannot be parted."""
        count = self.batch_size or (instance.samples + 1) // 2
        if instance.coupled or instance.samples < 2:
            gradient, is_even = instance.gradient(), torch.arange(instance.size, device=instance.device) % 2 == 0
            return gradient * is_even, gradient * ~is_even
        first, second = (instance.draw(count, seed=self.updates + k).gradient() for k in range(2))
        return first, second


OWN = tuple(field.name for field in fields(TorchOptim) if field.name not in ("factory", "options"))
"""The hyperparameters of the probe itself; every other name is an option of the optimizer."""


def from_optimizer(factory: Factory, **hyperparameters: Any) -> TorchOptim:
    """An optimizer of torch as a probe.

    ``factory`` is the class, or a function that makes the optimizer from a list of parameters. ``hyperparameters`` are
    options of the optimizer and fields of ``TorchOptim`` (``reading``, ``updates``, ``batch_size``, ``period``,
    ``seed``), of which the fields go first.

    Raises:
        ValueError: a hyperparameter is unknown or wrong, the factory has no name that can be imported, or the optimizer
            cannot be frozen: it needs a closure, or its state holds copies of the parameters.

    >>> import torch
    >>> from_optimizer(torch.optim.AdamW, lr=1e-3, reading="slope").label
    'torch_optim:torch.optim.AdamW[lr=0.001,reading=slope]'
    """
    module, name = getattr(factory, "__module__", ""), getattr(factory, "__qualname__", "")
    file = loaded_by_path(module)
    text = f"{file}:{name}" if file else _shortest(module, name)
    if not name.replace(".", "").isidentifier() or missing(text) or resolve(text) is not factory:
        what = name or type(factory).__name__
        raise ValueError(f"{what} cannot be imported: give a class or a function of a module, with its options beside")
    return TorchOptim.of(text, hyperparameters)


def is_factory(candidate: object) -> bool:
    """Whether a file's object makes an optimizer: a class of optimizers, or a function."""
    if isinstance(candidate, type):
        return issubclass(candidate, torch.optim.Optimizer)
    return inspect.isfunction(candidate)


def missing(factory: str) -> str:
    """Why the package of a factory cannot be imported; empty if it can, or if a file has the factory."""
    package = factory.partition(".")[0]
    if ":" in factory or importlib.util.find_spec(package):
        return ""
    return f"{package} is not installed, to which {factory} belongs"


@functools.cache
def resolve(factory: str) -> Factory:
    """The class or function of a name; raises ValueError with near misses if there is none."""
    place, _, name = factory.rpartition(":") if ":" in factory else factory.rpartition(".")
    try:
        module = load_file(place) if ":" in factory else importlib.import_module(place)
    except (ImportError, ValueError) as error:
        raise ValueError(f"no optimizer {factory!r}: {one_line(error)}") from error
    found: Any = vars(module).get(name)
    if not is_factory(found):
        known = [key for key, value in vars(module).items() if isinstance(value, type) and is_factory(value)]
        raise ValueError(f"no optimizer {factory!r}: {near_misses(name, known)}")
    return found


@functools.cache
def _tried(factory: str, options: tuple[tuple[str, Any], ...]) -> Trial:
    """The trial of an optimizer; raises ValueError if it cannot be frozen, ends the process or takes too long."""
    maker = resolve(factory)
    try:
        with patience.limited():
            return frozen.attempt(maker, dict(options))
    except BaseException as error:
        if patience.is_of_user(error):
            raise
        given = f" with {', '.join(f'{name}={value!r}' for name, value in options)}" if options else ""
        reason = str(error) if isinstance(error, ValueError) else on_one_line(error)
        raise ValueError(f"{factory} cannot be measured{given}: {reason}") from error


def _option_names(factory: Factory) -> list[str] | None:
    """The options that a factory takes; None if it takes any."""
    parameters = inspect.signature(factory).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return list(parameters)[1:]


def _shortest(module: str, name: str) -> str:
    """The shortest name of an object: a package may offer what one of its modules defines."""
    parts = module.split(".")
    for end in range(1, len(parts)):
        package = ".".join(parts[:end])
        found = vars(importlib.import_module(package)).get(name)
        if getattr(found, "__module__", None) == module and getattr(found, "__qualname__", None) == name:
            return f"{package}.{name}"
    return f"{module}.{name}"


def _packed(instance: Instance, moved: Moved) -> Tensor:
    """The step of a move as a parameter vector (P,) in the dtype of the step."""
    names = list(instance.unpack(torch.zeros(instance.size, dtype=instance.dtype, device=instance.device)))
    steps: Sequence[Tensor] = moved.steps()
    return instance.pack(dict(zip(names, steps, strict=True)))
