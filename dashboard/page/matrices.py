"""The matrices: the exact Fisher of a small layer, an approximation, and their difference."""

from __future__ import annotations

import streamlit as st

import controls
import show
import source
from curvbench import plot
from curvbench.analysis import matrices, views
from curvbench.analysis.summary import digits
from curvbench.plot.look import by_family

st.header("The matrices")
run, ends = controls.run(), views.cells(controls.problem_rows())
seed = controls.pick_seed(sorted(ends["seed"].unique()))
ends = ends[ends["seed"] == seed]
stored, damaged = source.blocks(run, ends["cell_id"])
show.warnings([f"{text}: set aside" for text in damaged])
without = ends[~ends["cell_id"].isin(list(stored))]
ends = ends[ends["cell_id"].isin(list(stored))]
if ends.empty:
    show.empty(
        "No cell of this problem and these probes stored a block of its matrix. Cells that are compared with the exact "
        "Fisher store one, unless an earlier version measured them or they have no layer blocks in closed form. "
        "Measure again:",
        "curvbench run suites/mlp --force",
    )
    st.stop()
blocks_of = {probe: stored[cell_id] for probe, cell_id in zip(ends["probe"], ends["cell_id"], strict=True)}
left, right = st.columns(2)
with left:
    probes = by_family(blocks_of)
    nearest = next(iter(matrices.nearest(blocks_of)), probes[0])  # not an exact one, which shows no difference
    probe = controls.pick("Approximation", probes, "approximation", probes.index(nearest))
name, blocks = probe, blocks_of[probe]
with right:
    scaled = controls.switch("After the best scalar multiple", "scaled")
if scaled:
    name, blocks = f"{digits(matrices.fitting_scale(blocks))} x {probe}", matrices.fitted(blocks)
n = len(blocks.exact)
st.caption(
    show.plain(
        f"The first {n} parameters of layer {blocks.layer}, row by row of its weights: {blocks.inputs} belong to one "
        f"output unit. Drag over a part to enlarge all three, double-click to return."
    )
)
drawn = (blocks.exact, blocks.approximation)
if len(without):
    names = without["probe"].where(without["status"] == "ok", without["probe"] + " (" + without["status"] + ")")
    st.caption(show.plain(f"Cells without a stored block: {', '.join(names)}."))
show.figure(plot.matrices(*drawn, blocks.layer, name, blocks.inputs), lambda: matrices.entries(blocks), "matrices")

st.subheader("Structure of units")
structure = matrices.structure(blocks)
st.caption("Shares of the squared norm within the blocks of single units, and on the diagonal.")
show.table(structure, "structure")
show.figure(plot.units(*drawn, blocks.inputs, blocks.layer, name), lambda: structure, "units")

st.subheader("Spectra")
layers = list(dict.fromkeys(name for blocks in blocks_of.values() for name in blocks.spectra))
if layers:
    layer = controls.pick("Layer", layers, "layer")
    spectra = matrices.spectra(blocks_of, layer)
    show.table(spectra, "eigenvalues")
    show.figure(plot.spectra(spectra, layer), lambda: spectra, "spectra")
else:
    show.empty(
        "Every layer is too large for its spectrum to be stored. A suite with smaller layers:",
        "curvbench run suites/mlp",
    )
