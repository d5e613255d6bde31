"""The blocks that a cell keeps for pictures: of the layer in which most whole units fit."""

from __future__ import annotations

import torch

from curvbench.fisher import ExactFisher
from curvbench.operators import Operator
from curvbench.spec import Layer
from curvbench.spec.pictures import Array, Blocks, Spectrum, keep, wanted

SIZE = 64  # rows and columns: what an eye tells apart
SPECTRUM = 32
LARGEST = 8192  # parameters of a layer whose spectrum is kept: a larger one costs seconds


def keep_blocks(operator: Operator, fisher: ExactFisher) -> None:
    """Keep the blocks of an operator and a Fisher of the same parameters, where anyone collects them."""
    if wanted() and (found := blocks(operator, fisher)):
        keep(found)


def blocks(operator: Operator, fisher: ExactFisher) -> Blocks | None:
    """A leading block of one layer in whole units, and spectra; None where the operator has no layer blocks."""
    try:
        parts = {la.name: operator.block(la.start, la.start + la.size) for la in fisher.layers}
    except ValueError:
        return None
    shown = min(fisher.layers, key=lambda layer: layer.inputs)
    n = _rows(shown)
    spectra = {
        layer.name: Spectrum(_eigenvalues(fisher.layer(layer.name)), _eigenvalues(parts[layer.name]))
        for layer in fisher.layers
        if layer.size <= LARGEST
    }
    return Blocks(
        shown.name, shown.inputs, _leading(fisher.layer(shown.name), n), _leading(parts[shown.name], n), spectra
    )


def _rows(layer: Layer) -> int:
    """As many whole units as fit; a part of one where none does."""
    most = min(SIZE, layer.size)
    return most - most % layer.inputs if layer.inputs <= most else most


def _leading(operator: Operator, n: int) -> Array:
    columns = torch.zeros(operator.shape[0], n, dtype=operator.dtype, device=operator.device)
    columns[:n] = torch.eye(n, dtype=operator.dtype, device=operator.device)
    return operator.matmat(columns)[:n].float().cpu().numpy()


def _eigenvalues(operator: Operator) -> Array:
    return operator.eigenvalues(SPECTRUM).float().cpu().numpy()
