"""The calls ``cb.shapes`` and ``cb.cost``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, overload

from torch import nn

from curvbench import registry
from curvbench.instance import Instance
from curvbench.prediction import files
from curvbench.prediction.layout import Shapes
from curvbench.prediction.pricing import ITEMSIZES, Cost, NoCost, price
from curvbench.prediction.survey import shapes_of
from curvbench.prediction.table import Costs
from curvbench.spec import FisherProbe, Probe
from curvbench.words import near_misses, refuse_type

Source = Shapes | Instance | nn.Module | str | Path


def shapes(source: Source, inputs: Any = None, targets: Any = None, **options: Any) -> Shapes:
    """The layer shapes of a network, for ``cb.cost``.

    Args:
        source: a TOML file, the name of a shipped network, an ``Instance``, or a module.
        inputs: for a module, its inputs as ``Instance`` takes them.
        targets: for a module, the targets.
        options: for a module, other arguments of ``Instance``, such as ``loss``.

    Raises:
        ValueError: the file or the model cannot be read; the text is one line.
    """
    if isinstance(source, Shapes):
        return source
    if isinstance(source, nn.Module):
        if inputs is None or targets is None:
            raise ValueError("the shapes of a module come from a pass: give inputs and targets")
        return shapes_of(Instance(source, inputs, targets, **options))
    if isinstance(source, Instance):
        return shapes_of(source)
    if not isinstance(source, str | Path):
        refuse_type("source", source, Shapes, "give a file, a shipped name, an Instance or a module")
    return files.load(source)


@overload
def cost(  # type: ignore[overload-overlap]  # a text is an iterable of texts, and the first signature takes it
    source: Source,
    method: str | Probe,
    *,
    samples: int | None = None,
    refresh: int = 1,
    dtype: str = "float32",
    budget: float | None = None,
    fisher_type: str | None = None,
) -> Cost: ...


@overload
def cost(
    source: Source,
    method: Iterable[str | Probe] | None = None,
    *,
    samples: int | None = None,
    refresh: int = 1,
    dtype: str = "float32",
    budget: float | None = None,
    fisher_type: str | None = None,
) -> Costs: ...


def cost(
    source: Source,
    method: str | Probe | Iterable[str | Probe] | None = None,
    *,
    samples: int | None = None,
    refresh: int = 1,
    dtype: str = "float32",
    budget: float | None = None,
    fisher_type: str | None = None,
) -> Cost | Costs:
    """What methods cost on a network, from the shapes of its layers: FLOPs and bytes, without a model in memory.

    Args:
        source: as ``cb.shapes`` takes it.
        method: one method by name or as a ``Probe``, or several. None means every method.
        samples: the number of samples of a batch, instead of that of the shapes.
        refresh: the steps from one update of the statistics and factorization to the next.
        dtype: ``bfloat16``, ``float32`` or ``float64``; the statistics of bfloat16 weights are in float32.
        budget: bytes that there are.
        fisher_type: ``type-2``, ``mc`` or ``empirical`` for every method that has a choice, as language models need it,
            whose type-2 Fisher has a column per token and word.

    Returns:
        A ``Cost`` for one method, ``Costs`` for several, which print as a table.

    Raises:
        ValueError: the shapes, a method or a setting cannot be used; the text is one line.
    """
    network = shapes(source)
    network = network if samples is None else dataclasses.replace(network, samples=samples)
    _refuse(refresh, dtype, budget, fisher_type)
    if isinstance(method, str | Probe):
        return price(_of_type(_probe(method), fisher_type), network, refresh, dtype, budget)
    if method is not None:
        rows = [price(_of_type(_probe(one), fisher_type), network, refresh, dtype, budget) for one in method]
        if not rows:
            raise ValueError("method is empty: name at least one, or leave it out")
        return Costs(network, tuple(rows), refresh, dtype, budget)
    return _of_all(network, refresh, dtype, budget, fisher_type)


def _refuse(refresh: int, dtype: str, budget: float | None, fisher_type: str | None) -> None:
    """Raise ValueError for a setting that nothing can have."""
    if refresh < 1:
        raise ValueError(f"refresh must be at least 1, got {refresh}")
    if dtype not in ITEMSIZES:
        raise ValueError(f"unknown dtype {dtype!r}: {near_misses(dtype, ITEMSIZES)}")
    if fisher_type not in (None, *FisherProbe.fisher_types):
        raise ValueError(
            f"unknown fisher_type {fisher_type!r}: {near_misses(str(fisher_type), FisherProbe.fisher_types)}"
        )
    if budget is not None and not budget > 0:
        raise ValueError(f"budget must be above zero, got {budget}")


def _of_all(network: Shapes, refresh: int, dtype: str, budget: float | None, fisher_type: str | None) -> Costs:
    """The costs of every method; one without a cost becomes a line."""
    rows, omitted = [], []
    for probe in registry.every_probe():
        try:
            rows.append(price(_of_type(probe, fisher_type), network, refresh, dtype, budget))
        except NoCost as error:
            omitted.append(str(error))
    return Costs(network, tuple(rows), refresh, dtype, budget, tuple(omitted))


def _probe(method: str | Probe) -> Probe:
    probe = registry.parse_probe(method) if isinstance(method, str) else method
    refuse_type("method", probe, Probe, "give a name, or curvbench.probe(name)")
    return probe


def _of_type(probe: Probe, fisher_type: str | None) -> Probe:
    """The method with another Fisher type, if it has a choice and knows the type."""
    if fisher_type is None or not isinstance(probe, FisherProbe) or fisher_type not in probe.fisher_types:
        return probe
    return dataclasses.replace(probe, fisher_type=fisher_type)
