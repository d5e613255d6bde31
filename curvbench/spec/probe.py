"""The contract of a probe: one method, as curvature operator and as preconditioner."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, get_args

from curvbench.spec.components import Component
from curvbench.spec.fields import NAMES
from curvbench.spec.geometry import FisherType, canonical_type
from curvbench.spec.outcomes import Unsupported

if TYPE_CHECKING:
    from torch import Tensor

    from curvbench.instance import Instance
    from curvbench.operators import Operator
    from curvbench.spec.outcomes import Row

Role = Literal["method", "reference", "bound"]
RENAMED = {  # what probes for earlier versions may define, and what has taken its place
    "complexity": "formulas in About.cost",
    "averages": "supports_ema",
    "layerwise": "is_layerwise",
    "joins": "combines_by",
    "follows": "needs_every_batch of the mix-in curvbench.spec.Follows",
    "keeps_momentum": "has_own_momentum",
    "mean_over_samples": "is_mean_over_samples",
    "reads_gradient": "reads_output_gradients",
    "solves_with": "damped(state), the damped matrix itself",
}


class About(NamedTuple):
    """What a probe says of its method beside its hyperparameters; ``curvbench list --json`` and the docs show it.

    ``represents``: the matrix F^, undamped; by default the first line of the probe's docstring. ``damping``: what is
    damped, and how. ``cost``: the published multiply-adds of the phases ``statistics``, ``invert`` and
    ``precondition``, and the numbers that are kept between steps (``memory``), as formulas (``curvbench.spec.formula``)
    of shape letters and hyperparameters. Each formula has its leading terms only. If it has several, each carries its
    true constant, because the ratio of counted to published FLOPs would not tend to a constant otherwise. Passes
    through the network are not included. ``where``: abbreviations in these formulas, by letter. ``source``: the paper
    with its equations. ``notes``: other facts that decide the probe's rows, in whole sentences. ``errata``: ids of
    ``curvbench.registry.errata``, or one of its papers (``E-F``), or texts. ``family``: the group of methods with which
    figures draw the probe, if it is installed. ``color``: the name of its color there; the default follows from the
    probe's name. ``formulas``: equations in TeX, the first one the represented matrix of the defaults, the others what
    stands in it, in the letters of docs/methods.md.
    """

    represents: str = ""
    damping: str = ""
    cost: Mapping[str, str] = MappingProxyType({})
    where: Mapping[str, str] = MappingProxyType({})
    source: str = ""
    notes: Sequence[str] = ()
    errata: Sequence[str] = ()
    family: str = ""
    color: str = ""
    formulas: Sequence[str] = ()


@dataclass(frozen=True)
class StepRule:
    """How an optimizer turns a method's solves into steps; the defaults are heavy ball on the preconditioned gradient.

    Here g is the gradient, p the preconditioned gradient, mu the optimizer's momentum and m its buffer.

    ``momentum``: what is averaged. ``step`` means m <- mu m + p; ``gradient`` means m <- mu m + g before m is
    preconditioned; ``average`` means the bias-corrected m <- mu m + (1 - mu) g. ``update``: whether the statistics of a
    batch are taken in ``before`` or ``after`` its own gradient is preconditioned. ``clip``: the bound of every entry of
    the preconditioned gradient. ``restarts``: each update drops the state and fits its batch from the beginning.
    ``others``: what trains the parameters that are no weight of a linear layer or a convolution, nor its bias: the
    ``method``, or ``adamw`` with a rate of its own, where the method's public code leaves them to AdamW. The probe then
    covers the weights alone in training.
    """

    momentum: Literal["step", "gradient", "average"] = "step"
    update: Literal["before", "after"] = "before"
    clip: float = float("inf")
    restarts: bool = False
    others: Literal["method", "adamw"] = "method"


class Probe(Component, ABC):
    """One method, as curvature operator and as preconditioner: the code that is measured is the code that trains.

    Work that is paid once, per refresh and per step stands in different methods, because these are the columns of the
    papers' cost tables. The probe defines its own states; each method returns a new state. Subclasses are frozen
    dataclasses, one per file. ``curvbench list`` shows the first line of their docstring. The docstring documents each
    field as ``name`` in double backquotes, a colon and the meaning, which ends at the next field or paragraph.

    ``updates``: the number of updates that ``fit`` makes. ``batch_size``: the number of samples in each update's batch,
    which is drawn in random order. None means the whole batch in its order.
    """

    about: ClassVar[About] = About()

    role: ClassVar[Role] = "method"
    """A published ``method``, the ``bound`` of a structure's errors, or a ``reference``: exact, in full or in part."""

    updates: int = 1
    """A field of methods that learn over steps, with a meaningful default."""

    batch_size: int | None = None
    """A field of methods that learn over steps: the samples of each update."""

    damping: float | None = None
    """A field of damped methods. None means that the method has no damping in this sense."""

    period: int = 1
    """A field of methods whose updates differ in cost: the number of updates after which they repeat."""

    seed: int | None = None
    """A field of methods that draw random numbers. None means that nothing is drawn."""

    fisher_type: str | None = None
    """A field of methods with score columns: the type of their Fisher. None means that there are no score columns."""

    mc_samples: int = 1
    """A field of methods with score columns: the number of label draws per sample if ``fisher_type`` is ``mc``."""

    statistic: str | None = None
    """A field of methods that read gradients of whole batches: what their labels are."""

    has_own_momentum: ClassVar[bool] = False
    """Whether ``precondition`` gives a step that holds past gradients already, because ``update`` has taken them in."""

    is_mean_over_samples: ClassVar[bool] = True
    """Whether the represented matrix stays the same if every sample is given twice."""

    represents_damped: ClassVar[bool] = False
    """Whether ``operator`` estimates F + damping I instead of F, because the fit takes in the damping.

    F^ is then the damped matrix itself, so that ``damped`` adds nothing to it. Its error has a second row,
    ``error.damped``, against F + damping I; F^ - damping I need not have a closed form, nor be positive semi-definite.
    """

    supports_ema: ClassVar[bool] = False
    """Whether the tensors of a state that ``refresh`` has not changed are statistics, which an average may blend."""

    is_layerwise: ClassVar[bool] = False
    """Whether lists of a state that ``refresh`` has not changed have an entry per layer, vectors one per parameter.

    Only then does a layer that a batch skips keep its statistics. For other probes the scores of that layer are zero.
    """

    is_ranked_by_error: ClassVar[bool] = True
    """Whether errors of the represented matrix tell the method from others; those of a solver of F itself are zero."""

    combines_by: ClassVar[Literal["mean", "gradient"] | None] = None
    """How the states of parts of a batch combine into the state of the whole batch.

    ``mean`` averages them, weighted by loss terms. ``gradient`` means that the state depends on the summed gradient
    alone. None means that they do not combine.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        names = {name for base in cls.__mro__ if not issubclass(Probe, base) for name in vars(base)}
        for name in sorted(names & RENAMED.keys()):
            raise TypeError(f"{cls.__name__}.{name} has given way to {RENAMED[name]}: see curvbench.spec.probe")
        for name, mix_in in (("follow", Follows), ("weigh", Weighs)):
            if name in names and not issubclass(cls, mix_in):
                raise TypeError(
                    f"{cls.__name__}.{name} is called for subclasses of curvbench.spec.{mix_in.__name__} only"
                )

    @property
    def sets_lengths(self) -> bool:
        """Whether the length of every layer's step is the method's own, whatever that of the gradient.

        Such a step is read by its directions, with a free rate per layer.
        """
        return False

    def damping_unit(self, terms: int) -> float | None:
        """The value of the field ``damping`` that means a damping of 1 of the mean Fisher of ``terms`` loss terms.

        None means that the probe has no such field; its step is then judged as it is.
        """
        return None if self.damping is None else 1.0

    @property
    def inner(self) -> dict[str, Probe]:
        """The probes among the hyperparameters, by the names of their fields."""
        return {name: value for name, value in self.hyperparameters.items() if isinstance(value, Probe)}

    @property
    def inner_solves(self) -> int:
        """How many times a step applies ``precondition`` of each probe among the hyperparameters."""
        return 1

    def reseeded(self, change: Callable[[int], int]) -> Probe:
        """The probe with other seeds, those of the probes among its hyperparameters included."""
        changed: dict[str, Any] = {name: probe.reseeded(change) for name, probe in self.inner.items()}
        if self.seed is not None:
            changed["seed"] = change(self.seed)
        return replace(self, **changed) if changed else self  # type: ignore[type-var]

    @property
    def rule(self) -> StepRule:
        """How an optimizer steps with the probe; a class attribute, or a property if hyperparameters decide it."""
        return StepRule()

    @property
    def reads_output_gradients(self) -> bool:
        """Whether statistics read gradients at layers' outputs for the data's labels, as the training pass makes them.

        A probe that needs every batch reads the scores of these labels.
        """
        return self.needs_every_batch or self.fisher_type == "empirical"

    @property
    def needs_every_batch(self) -> bool:
        """Whether ``precondition`` reads its own step's scores, so that every step calls ``follow``."""
        return False

    def fit(self, instance: Instance) -> Any:
        """The state after ``updates`` updates at frozen parameters; raises Unsupported for too large a batch."""
        if self.batch_size is not None and self.batch_size > instance.samples:
            raise Unsupported(f"batch_size={self.batch_size} is more than the {instance.samples} samples there are")
        state = self.init(instance)
        for count in range(self.updates):
            batch = instance if self.batch_size is None else instance.draw(self.batch_size, seed=count)
            state = self.update(state, batch)
        return state

    def unsupported(self, instance: Instance) -> str | None:
        """A one-line reason why this probe cannot be measured on ``instance``; None means that it can."""
        return None

    def init(self, instance: Instance) -> Any:
        """The state before any statistics; paid once."""
        return None

    @abstractmethod
    def update(self, state: Any, batch: Instance) -> Any:
        """Take in the statistics of one batch; the column ``statistics``."""

    def refresh(self, state: Any) -> Any:
        """Factorize or invert what ``precondition`` needs; the column ``invert``."""
        return state

    @abstractmethod
    def precondition(self, state: Any, gradient: Tensor) -> Tensor:
        """The damped inverse of the represented matrix applied to a gradient, (P,) -> (P,)."""

    @abstractmethod
    def operator(self, state: Any) -> Operator:
        """The represented matrix F^, undamped unless the probe ``represents_damped``.

        Raises:
            NoMatrix: the state represents none.
        """

    def in_place(self, state: Any, batch: Instance) -> Callable[[], object] | None:
        """A function that does the work of ``update`` at every call, to be timed; None means that ``update`` is timed.

        For probes whose ``update`` copies a state that training would change in place.
        """
        return None

    def remark(self, state: Any) -> str:
        """What a row on the step of a fitted state says of the step in ``method``; empty if there is nothing to say."""
        return ""

    def own_rows(self, state: Any) -> Iterable[Row]:
        """The rows on a fitted state that no meter makes."""
        return ()

    def damped(self, state: Any) -> Operator | None:
        """The damped matrix whose inverse ``precondition`` applies; by default F^ + damping I, if there is a damping.

        If the probe ``represents_damped`` it is F^ itself.

        For a refreshed state, ``precondition(state, g)`` equals damped(state)^-1 g for every vector g, up to rounding
        times the condition number of the damped matrix. A probe overrides this method if its damping enters otherwise.
        Only F^ plus a multiple of I comes as ``operator(state).damped(multiple)``, which tells meters that multiple.
        None means that the step is not the inverse of one symmetric matrix applied to g: Adam's step does not depend
        on g, and LNGD's layer-wise rate is not linear in g.
        """
        if self.represents_damped:
            return self.operator(state)
        return None if self.damping is None else self.operator(state).damped(self.damping)


NAMES[Probe] = "a probe"


class Follows(ABC):
    """A mix-in of probes whose steps read the scores of their own batch, as LNGD's layer-wise rate does."""

    @property
    @abstractmethod
    def needs_every_batch(self) -> bool:
        """Whether ``follow`` must be called at every step; a hyperparameter may decide it."""

    @abstractmethod
    def follow(self, state: Any, batch: Instance) -> Any:
        """The refreshed state with this batch's scores; called at every step at which no statistics are due."""


class Weighs(ABC):
    """A mix-in of probes whose step can be a reweighted gradient, as FNGD's is after its first epoch."""

    @property
    def needs_targets(self) -> bool:
        """Whether a step may come that ``weigh`` gives weights for; a hyperparameter may decide it."""
        return True

    @abstractmethod
    def weigh(self, state: Any, batch: Instance) -> tuple[Tensor, Any] | None:
        """Per-layer sample weights (L, N) and the next state, if they are known before the backward pass; else None.

        An optimizer then makes one backward pass with these weights. It takes in nothing and solves nothing.
        """


@dataclass(frozen=True)
class FisherProbe(Probe, ABC):
    """A damped probe whose statistics come from one of the Fisher types.

    ``fisher_type``: the Fisher type of the statistics. ``mc_samples``: the number of label draws per sample for ``mc``.
    ``seed``: the seed of the label draws. ``damping``: the damping, in units of the mean Fisher.
    """

    fisher_type: FisherType = "type-2"
    mc_samples: int = 1
    seed: int = 0
    damping: float = 1e-3

    fisher_types: ClassVar[tuple[FisherType, ...]] = ("type-2", "mc", "empirical")

    def __post_init__(self) -> None:
        object.__setattr__(self, "fisher_type", canonical_type(self.fisher_type))
        if self.fisher_type not in self.fisher_types:
            known = (kind for kind in get_args(FisherType) if kind in self.fisher_types)
            raise ValueError(f"fisher_type must be one of {', '.join(known)}, got {self.fisher_type!r}")
        super().__post_init__()
        if self.mc_samples < 1:
            raise ValueError(f"mc_samples must be at least 1, got {self.mc_samples}")
        if not 0 <= self.damping < float("inf"):
            raise ValueError(f"damping must be finite and not negative, got {self.damping}")
