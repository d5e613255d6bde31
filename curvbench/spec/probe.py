"""The contract of a probe: one method, as curvature operator and as preconditioner."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    from torch import Tensor

    from curvbench.instance import Instance
    from curvbench.operators import Operator
from curvbench.spec.components import Component
from curvbench.spec.geometry import FISHER_ALIASES, FisherType, LayerSize
from curvbench.spec.outcomes import Unsupported


class About(NamedTuple):
    """What a probe says of its method beside its hyperparameters, as ``curvbench list --json`` and the docs show it.

    ``represents``: the matrix F^, undamped (empty: the docstring's first line). ``damping``: what is damped, and how.
    ``cost``: the keys of ``complexity`` as formulas, with the default hyperparameters, in shape letters, k = k_h k_w
    entries of a kernel (0 for a Linear) and names of hyperparameters; [condition] is 1 or 0. A term with a letter of a
    layer (S, G, D, M, k) is summed over layers. ``source``: the paper
    with its equations. ``notes``: what else decides its rows, one sentence or more each. ``errata``: ids of
    ``curvbench.registry.errata``, or one of its papers (``E-F``), or texts.
    """

    represents: str = ""
    damping: str = ""
    cost: Mapping[str, str] = MappingProxyType({})
    source: str = ""
    notes: Sequence[str] = ()
    errata: Sequence[str] = ()


@dataclass(frozen=True)
class StepRule:
    """How an optimizer turns a method's solves into steps; the defaults are heavy ball on the preconditioned gradient.

    ``momentum``: of the ``step``, m <- mu m + p; of the ``gradient`` before it is preconditioned, m <- mu m + g; or its
    bias-corrected ``average``, m <- mu m + (1 - mu) g. ``update``: whether a batch is taken in ``before`` or ``after``
    its own gradient is preconditioned. ``clip``: bound of every entry of the preconditioned gradient. ``anew``: each
    update forgets the others and fits its batch.
    """

    momentum: Literal["step", "gradient", "average"] = "step"
    update: Literal["before", "after"] = "before"
    clip: float = float("inf")
    anew: bool = False


class Probe(Component, ABC):
    """One method, as curvature operator and as preconditioner: the code that is measured is the code that trains.

    What is paid once, per refresh and per step are different methods, because those are the columns of the
    papers' cost tables. States are the probe's own; each method returns a new one. Subclasses are frozen
    dataclasses in one file each. The first line of their docstring is what ``curvbench list`` shows; what follows a
    field's name and a colon there, up to the next such name or the paragraph's end, is that field's meaning.

    ``updates``: how many updates ``fit`` makes. ``batch_size``: samples that each of them sees, drawn anew in random
    order; none stands for the whole batch as it is, in which only labels that are drawn vary.
    """

    about: ClassVar[About] = About()

    updates: int = 1
    """A field, with a meaningful default, of methods that learn over steps."""

    batch_size: int | None = None
    """A field of the same methods."""

    keeps_momentum: ClassVar[bool] = False
    """Whether ``precondition`` gives the step that past gradients make, which ``update`` has taken in already."""

    mean_over_samples: ClassVar[bool] = True
    """Whether the represented matrix is a mean over samples, which giving each of them twice does not change."""

    rule: ClassVar[StepRule] = StepRule()
    """How an optimizer steps with it."""

    averages: ClassVar[bool] = False
    """Whether the tensors of an unrefreshed state are statistics, so that a running average may blend them."""

    layerwise: ClassVar[bool] = False
    """Whether lists of an unrefreshed state have an entry per layer, and its vectors one per parameter.

    So a layer that a batch skips keeps its own. To any other probe its scores in that batch are zero, which they are.
    """

    joins: ClassVar[Literal["mean", "gradient"] | None] = None
    """How a batch in parts is one batch: their states' tensors are means over it, or are made of its gradient alone."""

    def damping_unit(self, terms: int) -> float | None:
        """What a damping of 1 of the mean Fisher of so many loss terms is in the field ``damping``: by default 1.

        None for a method without this field, whose step is judged with what it has in place of a damping.
        """
        return 1.0 if "damping" in self.hyperparameters else None

    @property
    def reads_gradient(self) -> bool:
        """Whether statistics read output gradients for the data's labels, which the training's own pass makes."""
        return self.follows or getattr(self, "fisher_type", "") == "empirical"

    @property
    def follows(self) -> bool:
        """Whether ``precondition`` takes scores of the batch of its own step, statistics due or not."""
        return False

    @property
    def solves_with(self) -> float | None:
        """The damping with which ``precondition`` solves (F^ + damping I) p = g; None where its step is another one."""
        return getattr(self, "damping", None) if getattr(self, "damping_rule", "exact") == "exact" else None

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
        """A one-line reason why this probe cannot be measured on ``instance``, or None."""
        return None

    def init(self, instance: Instance) -> Any:
        """The state before any statistics; paid once."""
        return None

    @abstractmethod
    def update(self, state: Any, batch: Instance) -> Any:
        """Take in the statistics of one batch; the column ``statistics``."""

    def weigh(self, state: Any, batch: Instance) -> tuple[Tensor, Any] | None:
        """Where the step is known before the gradient: weights (L, N) of the samples in every layer, and the new state.

        An optimizer then makes one backward pass with them, which gives the step; nothing is taken in or solved.
        """
        return None

    def follow(self, state: Any, batch: Instance) -> Any:
        """Of a probe that ``follows``: the refreshed state at a step of which nothing else is taken in."""
        return state

    def refresh(self, state: Any) -> Any:
        """Factorize or invert what ``precondition`` needs; the column ``invert``."""
        return state

    @abstractmethod
    def precondition(self, state: Any, gradient: Tensor) -> Tensor:
        """The damped inverse of the represented matrix applied to a gradient, (P,) -> (P,)."""

    @abstractmethod
    def operator(self, state: Any) -> Operator:
        """The represented matrix, undamped."""

    def complexity(self, sizes: Sequence[LayerSize], samples: int, columns: int) -> Mapping[str, float]:
        """The published cost per phase in multiply-adds, for N samples of R columns; methods without one: empty.

        Keys: ``statistics``, ``invert``, ``precondition``, and ``memory``, the numbers kept between steps. Leading
        terms; where a phase adds several they have the constants of the algorithm used, or no mix of them would tend
        to a constant. Passes through the network are not included.
        """
        return {}


@dataclass(frozen=True)
class FisherProbe(Probe, ABC):
    """A damped probe whose statistics come from one of the Fisher types.

    ``fisher_type``: that of the statistics. ``mc_samples``: label draws per sample, for ``mc``. ``seed``: of the label
    draws. ``damping``: of the mean Fisher.
    """

    fisher_type: FisherType = "type-2"
    mc_samples: int = 1
    seed: int = 0
    damping: float = 1e-3

    def __post_init__(self) -> None:
        object.__setattr__(self, "fisher_type", FISHER_ALIASES.get(self.fisher_type, self.fisher_type))
        known = [kind for kind in get_args(FisherType) if kind in self.fisher_types]
        if self.fisher_type not in known:
            raise ValueError(f"fisher_type must be one of {', '.join(known)}, got {self.fisher_type!r}")
        if self.mc_samples < 1:
            raise ValueError(f"mc_samples must be at least 1, got {self.mc_samples}")
        if not 0 <= self.damping < float("inf"):
            raise ValueError(f"damping must be finite and not negative, got {self.damping}")

    fisher_types: ClassVar[tuple[FisherType, ...]] = ("type-2", "mc", "empirical")
