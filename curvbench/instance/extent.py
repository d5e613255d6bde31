"""The extent of a Fisher matrix: which of a model's trainable parameters it covers, and what it leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from curvbench.spec.geometry import PARAMETERS, Parameters

SHOWN = 3  # names of parameters per reason


class Extent(NamedTuple):
    """The choice of parameters, how many of the trainable ones are covered, and why others are not.

    ``left_out``: a reason by the name of a parameter. ``coupled``: whether the outputs of a sample depend on the other
    samples of the batch.
    """

    parameters: Parameters
    size: int
    trainable: int
    left_out: Mapping[str, str]
    coupled: bool

    @property
    def share(self) -> float:
        """The covered share of the trainable parameters."""
        return self.size / self.trainable

    @property
    def note(self) -> str:
        """What is left out, reason by reason, and whether samples are coupled; empty if there is nothing to say."""
        left_out = [f"left out: {', '.join(_grouped(self.left_out))}"] if self.left_out else []
        return "; ".join([*left_out, *(["the samples are coupled"] if self.coupled else [])])

    def part(self, size: int) -> Extent:
        """The extent of a block of ``size`` entries."""
        return self._replace(size=size, left_out={})

    def __str__(self) -> str:
        share = f", {self.share:.1%} of the trainable ones" if self.size < self.trainable else ""
        return "; ".join(filter(None, [PARAMETERS[self.parameters] + share, self.note]))


def _grouped(left_out: Mapping[str, str]) -> Iterator[str]:
    """``'a', 'b' and 4 more (reason)`` per reason."""
    for reason in dict.fromkeys(left_out.values()):
        names = [name for name, why in left_out.items() if why == reason]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        yield f"{', '.join(map(repr, names[:SHOWN]))}{more} ({reason})"
