"""The training along which statistics grow old."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from curvbench.spec.components import Component


@dataclass(frozen=True)
class Drift(Component):
    """A training that is the same for every probe: no probe steps in it, their statistics grow old along it.

    It begins at the problem's snapshot and has a constant rate, in shuffled batches that the cell's seed chooses.

    ``ages``: the numbers of steps k after which statistics are held. ``start``: the step t at which they are fitted.
    ``lr``: the learning rate. ``batch``: the number of samples per step. ``momentum``: the momentum of SGD, and Adam's
    beta1. ``optimizer``: the method that steps.
    """

    ages: tuple[int, ...] = (0, 1, 10, 100)
    start: int = 0
    lr: float = 0.01
    batch: int = 128
    momentum: float = 0.9
    optimizer: Literal["sgd", "adam"] = "sgd"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ages or list(self.ages) != sorted({*self.ages}) or self.ages[0] < 0:
            raise ValueError(f"drift: ages must grow, from 0 or more steps on, got {self.ages}")
        if self.start < 0 or self.batch < 1:
            raise ValueError(f"drift: start >= 0 and batch >= 1 expected, got start={self.start}, batch={self.batch}")
        if not 0 <= self.lr < float("inf") or not 0 <= self.momentum < 1:
            raise ValueError(
                f"drift: a finite lr >= 0 and 0 <= momentum < 1 expected, got lr={self.lr}, momentum={self.momentum}"
            )

    @property
    def name(self) -> str:
        """The first word of its text."""
        return "drift"

    @property
    def words(self) -> str:
        """The step t of the training, in words."""
        how = f"{self.optimizer} at rate {self.lr:g} with momentum {self.momentum:g} in batches of {self.batch}"
        return f"step {self.start} of {how}"
