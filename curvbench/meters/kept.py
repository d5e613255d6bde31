"""The blocks that a cell stores for pictures: a block of the layer of which most units fit."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch

from curvbench.fisher import ExactFisher
from curvbench.operators import Operator
from curvbench.spec import Layer
from curvbench.spec.pictures import Array, Blocks, Spectrum, keep, wanted

SIZE = 64  # rows and columns of a picture: an eye tells so many apart
SPECTRUM = 32  # largest eigenvalues that are stored
_LEADING: WeakKeyDictionary[ExactFisher, Array] = WeakKeyDictionary()  # the same for all probes of this process
LARGEST = 8192  # parameters of a layer whose spectrum is stored: a larger layer takes seconds


def keep_blocks(operator: Operator, fisher: ExactFisher) -> None:
    """Store the blocks of an operator and a Fisher of the same parameters, if the cell collects blocks."""
    if wanted() and (pictures := blocks(operator, fisher)):
        keep(pictures)


def blocks(operator: Operator, fisher: ExactFisher) -> Blocks | None:
    """The leading block of one layer, and spectra; None means that the operator has no blocks of layers."""
    try:
        parts = {la.name: operator.block(la.start, la.start + la.size) for la in fisher.layers}
    except ValueError:
        return None
    narrowest = min(fisher.layers, key=lambda layer: layer.inputs)
    n = _rows(narrowest)
    exact = fisher.layer(narrowest.name)
    if exact not in _LEADING:
        _LEADING[exact] = _leading(exact, n)
    leading = _LEADING[exact], _leading(parts[narrowest.name], n)
    spectra = {
        layer.name: Spectrum(_eigenvalues(fisher.layer(layer.name)), _eigenvalues(parts[layer.name]))
        for layer in fisher.layers
        if layer.size <= LARGEST
    }
    return Blocks(narrowest.name, narrowest.inputs, *leading, spectra)


def _rows(layer: Layer) -> int:
    """The rows of as many whole units as fit into a picture; a part of a unit if no whole unit fits."""
    most = min(SIZE, layer.size)
    return most - most % layer.inputs if layer.inputs <= most else most


def _leading(operator: Operator, n: int) -> Array:
    units = torch.zeros(operator.shape[0], n, dtype=operator.dtype, device=operator.device)
    units[:n] = torch.eye(n, dtype=operator.dtype, device=operator.device)
    return operator.matmat(units)[:n].float().cpu().numpy()


def _eigenvalues(operator: Operator) -> Array:
    return operator.eigenvalues(SPECTRUM).float().cpu().numpy()
