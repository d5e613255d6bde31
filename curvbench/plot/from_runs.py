"""Figures from the folder of a run: the blocks of matrices that its cells have stored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from curvbench import store
from curvbench.analysis import frames
from curvbench.analysis import matrices as tables
from curvbench.plot.blockwise import matrices_figure, spectra_figure, units_figure
from curvbench.spec.pictures import Blocks
from curvbench.words import near_misses

if TYPE_CHECKING:
    import plotly.graph_objects as go


def matrices(run: str | Path, probe: str | None = None, problem: str | None = None) -> go.Figure:
    """|F|, |F^| and |F^ - F| of one layer side by side; see ``blockwise.matrices_figure``.

    ``run``: its folder. ``probe``, ``problem``: labels; None means the probe nearest to the exact Fisher, and the
    problem of the first row.

    Raises:
        ValueError: the run has stored no such block.
    """
    name, blocks = _chosen(_stored(run, problem), probe)
    return matrices_figure(blocks.exact, blocks.approximation, blocks.layer, name, blocks.inputs)


def units(run: str | Path, probe: str | None = None, problem: str | None = None) -> go.Figure:
    """Norms of the blocks between units, of the matrices that ``matrices`` draws; the arguments are the same."""
    name, blocks = _chosen(_stored(run, problem), probe)
    return units_figure(blocks.exact, blocks.approximation, blocks.inputs, blocks.layer, name)


def spectra(run: str | Path, layer: str | None = None, problem: str | None = None) -> go.Figure:
    """The largest eigenvalues of a layer, exact and of each probe.

    ``run``: its folder. ``layer``: its name; None means the first layer with a spectrum. ``problem``: its label; None
    means the problem of the first row.

    Raises:
        ValueError: the run has stored no spectrum of the layer.
    """
    blocks_of = _stored(run, problem)
    layers = list(dict.fromkeys(name for blocks in blocks_of.values() for name in blocks.spectra))
    if not layers or (layer or layers[0]) not in layers:
        raise ValueError(f"no spectrum of layer {layer!r} in {run}: {near_misses(layer or '', layers)}")
    return spectra_figure(tables.spectra(blocks_of, layer or layers[0]), layer or layers[0])


def _stored(run: str | Path, problem: str | None) -> dict[str, Blocks]:
    """The blocks of the first seed of a problem, by the label of their probe."""
    rows = store.load(run)
    names = frames.problems(rows)
    if problem is not None and problem not in names:
        raise ValueError(f"no problem {problem!r} in {run}: {near_misses(problem, names)}")
    cells = frames.of_problem(rows, problem or next(iter(names), ""))
    cells = cells[cells["seed"] == cells["seed"].min()].drop_duplicates("cell_id")
    pairs = zip(frames.labels(cells, "probe"), cells["cell_id"], strict=True)
    stored = {probe: store.read_blocks(Path(run), cell) for probe, cell in pairs}
    return {probe: blocks for probe, blocks in stored.items() if blocks is not None}


def _chosen(blocks_of: dict[str, Blocks], probe: str | None) -> tuple[str, Blocks]:
    if not blocks_of:
        raise ValueError("no cell of this problem has stored a block: run it again, compared with the exact Fisher")
    name = probe or next(iter(tables.nearest(blocks_of)), next(iter(blocks_of)))
    if name not in blocks_of:
        raise ValueError(f"no block of {name!r} is stored: {near_misses(name, blocks_of)}")
    return name, blocks_of[name]
