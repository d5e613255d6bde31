"""Sums over the score columns of a batch: every role's slopes for all cotangents, however many they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from curvbench.instance import Instance
from curvbench.instance.likelihood.hessians import Hessians
from curvbench.instance.many import blocks, head
from curvbench.instance.tape import Tape


class Sum(Protocol):
    """A sum over cotangents for one role."""

    def add(self, B_NGMS: Tensor, /) -> None:
        """Add the slopes of some more cotangents (K N, G, M, S), one after the other."""


class ClosedSum(Sum, Protocol):
    """A sum over cotangents that a last layer has in closed form."""

    def add_hessians(self, hessians: Hessians, positions: int) -> None:
        """Add all cotangents of a last layer that is applied at ``positions``, each of which has a loss term."""


def add_all(sums: Mapping[str, Sum], batch: Instance, tape: Tape, fisher_type: str, mc_samples: int, seed: int) -> None:
    """Add the slopes of all cotangents of a Fisher type to the sums of the recorded roles."""
    last = head(batch, tape, fisher_type)
    if last is not None:
        sums[last.role].add_hessians(last.hessians, batch.terms_per_sample)  # type: ignore[attr-defined]
    for block in blocks(batch, tape, fisher_type, mc_samples, seed, last):
        for name, B_KNGMS in block.items():
            sums[name].add(B_KNGMS.flatten(0, 1))
