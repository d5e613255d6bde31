"""The matrices themselves: the exact Fisher of a small layer, an approximation, and what is between them."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import streamlit as st

import controls
import show
import source
from curvbench import plot
from curvbench.analysis import matrices, views
from curvbench.analysis.summary import digits
from curvbench.plot.look import by_family

frame, problem, run = controls.frame(), controls.problem(), controls.run()
ends = views.cells(views.of_problem(frame, problem))

st.header("The matrices")
seed = controls.pick_seed(sorted(ends["seed"].unique()))
ends = ends[ends["seed"] == seed]
try:
    kept = source.blocks(run, ends["cell_id"])
except ValueError as error:
    st.error(show.plain(error))
    st.stop()
ends = ends[ends["cell_id"].isin(list(kept))]
if ends.empty:
    show.empty(
        "No cell of this problem and these probes kept a block of its matrix: cells that are compared with the exact "
        "Fisher do, unless they were measured by an earlier version or have no layer blocks in closed form. "
        "Measure again:",
        "curvbench run suites/mlp --force",
    )
    st.stop()
of_probe = {probe: kept[cell_id] for probe, cell_id in zip(ends["probe"], ends["cell_id"], strict=True)}
left, right = st.columns(2)
with left:
    probe = st.selectbox("Approximation", by_family(of_probe), key="approximation", **controls.LINKED)
blocks = of_probe[probe]
name, scale = probe, matrices.fitting_scale(blocks)
with right:
    scaled = controls.switch("After the best scalar multiple", "scaled")
if scaled:
    name, blocks = f"{digits(scale)} x {probe}", replace(blocks, approximation=scale * blocks.approximation)
n = len(blocks.exact)
st.caption(
    show.plain(
        f"The first {n} parameters of layer {blocks.layer}, row by row of its weights: {blocks.inputs} belong to one "
        f"output unit. Drag over a part to enlarge all three, double-click to return."
    )
)
drawn = (blocks.exact, blocks.approximation)
entries = pd.DataFrame(
    {"row": [i // n for i in range(n * n)], "column": [i % n for i in range(n * n)]}
    | {kind: matrix.ravel() for kind, matrix in zip(("exact", "approximation"), drawn, strict=True)}
)
show.figure(plot.matrices(*drawn, blocks.layer, name, blocks.inputs), entries, "matrices")

st.subheader("Structure of units")
structure = matrices.structure(blocks)
show.figure(plot.units(*drawn, blocks.inputs, blocks.layer, name), structure, "units")
st.caption("Shares are of the squared norm: what lies within the blocks of single units, and on the diagonal.")
show.table(structure, "structure")

st.subheader("Spectra")
layers = list(dict.fromkeys(name for blocks in of_probe.values() for name in blocks.spectra))
if layers:
    layer = st.selectbox("Layer", layers, key="layer", **controls.LINKED)
    spectra = matrices.spectra(of_probe, layer)
    show.figure(plot.spectra(spectra, layer), spectra, "spectra")
else:
    st.info("Every layer is too large for its spectrum to be kept.", icon=":material/info:")
