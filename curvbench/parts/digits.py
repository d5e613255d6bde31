"""A probe in other digits: its statistics in one dtype, its factors in another, as in training of mixed precision.

The passes and the statistics run on copies of the model and of the inputs in the dtype of the statistics. What an
update gives is stored, factorized and applied in the dtype of the factors. The gradient that is preconditioned and the
exact Fisher stay as they are.
"""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import new_class
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from curvbench import numerics, states
from curvbench.instance import Instance
from curvbench.instance.passes import in_network_pass, tf32
from curvbench.operators import Operator
from curvbench.parts.overflow import Watch, overflow, pass_overflow
from curvbench.spec import DIGITS, Diverged, FactorDtype, Follows, Probe, StatisticsDtype, Unsupported, Weighs

P = TypeVar("P", bound=Probe)
Change = Callable[[torch.dtype], torch.dtype]


class Stored(NamedTuple):
    """A probe's own state in the dtype of its factors, and the dtype of the instance that it was fitted to."""

    own: Any
    dtype: torch.dtype


@dataclass(frozen=True)
class Digits(Probe, ABC):
    """A probe in other digits; ``in_digits`` derives its class from the probe's own.

    ``statistics_dtype``: the dtype of the passes and of the statistics. None means the dtype of the weights.
    ``factor_dtype``: the dtype in which factors are stored, factorized and applied. None means the dtype of the
    weights, float32 at least. Sums that a method keeps in float64 beside factors in float32 stay there.
    """

    statistics_dtype: StatisticsDtype | None = None
    factor_dtype: FactorDtype | None = None

    class_without_digits: ClassVar[type[Probe]]
    """The probe's own class."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (self.class_without_digits, _fields(self))

    @functools.cached_property
    def _own(self) -> Probe:
        """The same probe in the digits of its instance."""
        return self.class_without_digits(**{name: value for name, value in _fields(self).items() if name not in DIGITS})

    def unsupported(self, instance: Instance) -> str | None:
        if self.statistics_dtype == "tf32" and instance.device.type != "cuda":
            return f"statistics_dtype=tf32 needs a CUDA device: {instance.device.type} has no TF32, take float32"
        try:
            lowered = self._lowered(instance)
            lowered.plain_outputs()
        except (RuntimeError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return f"the model does not run in {self._name(instance.dtype)}: {str(error).splitlines()[0]}"
        with self._computing(instance.dtype):
            return self._own.unsupported(lowered)

    def fit(self, instance: Instance) -> Any:
        """As every probe's.

        Raises:
            Diverged: a pass or the statistics leave the range of their dtype; the text names the layer.
        """
        lowered, name = self._lowered(instance), self._name(instance.dtype)
        if where := pass_overflow(lowered):
            raise Diverged(f"{name} overflows at {where}")
        with Watch(lowered.dtype) if lowered.dtype.itemsize < 4 else nullcontext():
            state = super().fit(instance)
        # Here, because a check in every update would count as the method's FLOPs.
        if not all(tensor.isfinite().all() for tensor in states.tensors(state)):
            raise Diverged(f"{name} overflows at {overflow(lowered, self._own, state.own) or 'an unknown layer'}")
        return state

    def init(self, instance: Instance) -> Stored | None:
        state = self._stored(self._own.init, instance)
        return None if state.own is None else state

    def update(self, state: Stored | None, batch: Instance) -> Stored:
        return self._stored(functools.partial(self._own.update, state and state.own), batch)

    def refresh(self, state: Stored) -> Stored:
        with self._computing(state.dtype):
            return state._replace(own=self._own.refresh(state.own))

    def precondition(self, state: Stored, gradient: Tensor) -> Tensor:
        with self._computing(state.dtype):
            step = self._own.precondition(state.own, gradient.to(self._factors(state.dtype)))
        return step.to(gradient.dtype)

    def operator(self, state: Stored) -> Operator:
        with self._computing(state.dtype):
            return self._compared(self._own.operator(state.own), state.dtype)

    def damped(self, state: Stored) -> Operator | None:
        with self._computing(state.dtype):
            damped = self._own.damped(state.own)
        return damped and self._compared(damped, state.dtype)

    def _stored(self, make: Callable[[Instance], Any], batch: Instance) -> Stored:
        """What ``make`` gives for a batch in the dtype of the statistics, in that of the factors.

        Raises:
            Diverged: an operation fails because a number is not finite; the text names the layer.
            Unsupported: an operation has no kernel in this dtype.
        """
        lowered, name = self._lowered(batch), self._name(batch.dtype)
        try:
            with self._computing(batch.dtype):
                made = make(lowered)
        except (RuntimeError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            if where := overflow(lowered, self._own):
                raise Diverged(f"{name} overflows at {where}") from error
            if isinstance(error, ValueError) or lowered.dtype.itemsize >= 4:
                raise
            raise Unsupported(f"no statistics in {name}: {str(error).splitlines()[0]}") from error
        return Stored(states.cast(made, self._change(batch.dtype)), batch.dtype)

    def _lowered(self, instance: Instance) -> Instance:
        return instance.in_dtype(self._statistics(instance.dtype))

    def _compared(self, operator: Operator, dtype: torch.dtype) -> Operator:
        """An operator in the dtype of the instance, in which it is compared."""
        factors = self._factors(dtype)
        return states.cast(operator, lambda own: dtype if own == factors or own.itemsize < dtype.itemsize else own)

    def _name(self, dtype: torch.dtype) -> str:
        return self.statistics_dtype or str(dtype).removeprefix("torch.")

    def _statistics(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the statistics on an instance of a dtype."""
        return _dtype(self.statistics_dtype.replace("tf32", "float32")) if self.statistics_dtype else dtype

    def _factors(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the factors on an instance of a dtype."""
        return _dtype(self.factor_dtype) if self.factor_dtype else dtype

    def _change(self, dtype: torch.dtype) -> Change:
        """The dtype of a tensor of factors by the dtype in which it comes."""
        statistics, factors = self._statistics(dtype), self._factors(dtype)
        return lambda own: factors if own == statistics or own.itemsize < factors.itemsize else own

    @contextmanager
    def _computing(self, dtype: torch.dtype) -> Iterator[None]:
        """Inside, matrices are factorized in the dtype of the factors, and products of two dtypes exist.

        A ValueError names the dtype of the statistics if it has fewer digits than the instance's.
        """
        mixed = self._statistics(dtype) != self._factors(dtype)
        change = self._change(dtype)
        with ExitStack() as inside:
            inside.enter_context(numerics.factorized_in(change))
            inside.enter_context(Promoting(change) if mixed else nullcontext())
            inside.enter_context(tf32(self.statistics_dtype == "tf32") if self.statistics_dtype else nullcontext())
            try:
                yield
            except ValueError as error:
                if self.statistics_dtype != "tf32" and self._statistics(dtype).itemsize >= dtype.itemsize:
                    raise
                raise ValueError(f"with statistics in {self.statistics_dtype}: {error}") from error


class _Following(Follows, ABC):
    def follow(self: Any, state: Stored, batch: Instance) -> Any:
        return self._stored(functools.partial(self._own.follow, state.own), batch)


class _Weighing(Weighs, ABC):
    def weigh(self: Any, state: Stored, batch: Instance) -> tuple[Tensor, Any] | None:
        with self._computing(batch.dtype):
            weighed = self._own.weigh(state.own, batch)
        return weighed and (weighed[0], state._replace(own=weighed[1]))


@functools.cache
def in_digits(kind: type[P]) -> type[P]:
    """The class of a probe with the fields ``statistics_dtype`` and ``factor_dtype`` beside its own."""
    mix_ins = [mix_in for base, mix_in in ((Follows, _Following), (Weighs, _Weighing)) if issubclass(kind, base)]
    names = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "class_without_digits": kind,
    }
    made = new_class(kind.__name__, (Digits, *mix_ins, kind), exec_body=lambda body: body.update(names))
    return dataclass(frozen=True)(made)


def _made(kind: type[Probe], fields: dict[str, Any]) -> Probe:
    return in_digits(kind)(**fields)


def _fields(probe: Any) -> dict[str, Any]:
    return {field.name: getattr(probe, field.name) for field in dataclasses.fields(probe) if field.init}


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


_PRODUCTS = frozenset(
    {
        *(torch.matmul, torch.mm, torch.bmm, torch.mv, torch.dot, torch.einsum, torch.addmm, torch.baddbmm),
        *(torch.tensordot, torch.linalg.multi_dot, torch.nn.functional.linear),
        *(Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm, Tensor.bmm, Tensor.mv, Tensor.dot),
        *(Tensor.addmm, Tensor.baddbmm, Tensor.index_add, Tensor.index_add_),
    }
)
_FACTORIZATIONS = frozenset(
    {
        *(torch.linalg.eigh, torch.linalg.qr, torch.linalg.svd, torch.linalg.pinv, torch.linalg.solve),
        *(torch.linalg.solve_triangular, torch.cholesky_inverse, torch.geqrf),
    }
)


class Promoting(TorchFunctionMode):
    """Products of two dtypes run in the wider one, as sums do; factorizations run in the dtype that ``change`` gives.

    Passes through the network run as they are.
    """

    def __init__(self, change: Change) -> None:
        super().__init__()
        self._change = change

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in _FACTORIZATIONS:
            args = _each(args, lambda tensor: tensor.to(self._change(tensor.dtype)))
        elif func in _PRODUCTS and not in_network_pass():
            dtypes = [tensor.dtype for tensor in states.tensors(args) if tensor.is_floating_point()]
            widest = functools.reduce(torch.promote_types, dtypes) if dtypes else None
            args = args if len(set(dtypes)) < 2 else _each(args, lambda tensor: tensor.to(widest))
        return func(*args, **(kwargs or {}))


def _each(args: Any, act: Callable[[Tensor], Tensor]) -> Any:
    """Arguments with ``act`` of every tensor of real numbers, also inside lists."""
    return states.mapped(args, lambda tensor: act(tensor) if tensor.is_floating_point() else tensor)
