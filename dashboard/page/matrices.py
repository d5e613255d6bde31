"""The matrices themselves: the exact Fisher of a small layer, an approximation, and what is between them."""

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
run, ends = controls.run(), views.cells(controls.mine())
seed = controls.pick_seed(sorted(ends["seed"].unique()))
ends = ends[ends["seed"] == seed]
try:
    kept = source.blocks(run, ends["cell_id"])
except ValueError as error:
    st.error(show.plain(error))
    st.stop()
without = ends[~ends["cell_id"].isin(list(kept))]
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
    known = by_family(of_probe)
    usual = next(iter(matrices.nearest(of_probe)), known[0])  # what is exact shows no difference
    probe = controls.pick("Approximation", known, "approximation", known.index(usual))
name, blocks = probe, of_probe[probe]
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
    st.caption(show.plain(f"Kept no block: {', '.join(names)}."))
show.figure(plot.matrices(*drawn, blocks.layer, name, blocks.inputs), lambda: matrices.entries(blocks), "matrices")

st.subheader("Structure of units")
structure = matrices.structure(blocks)
st.caption("Shares are of the squared norm: what lies within the blocks of single units, and on the diagonal.")
show.table(structure, "structure")
show.figure(plot.units(*drawn, blocks.inputs, blocks.layer, name), lambda: structure, "units")

st.subheader("Spectra")
layers = list(dict.fromkeys(name for blocks in of_probe.values() for name in blocks.spectra))
if layers:
    layer = controls.pick("Layer", layers, "layer")
    spectra = matrices.spectra(of_probe, layer)
    show.table(spectra, "eigenvalues")
    show.figure(plot.spectra(spectra, layer), lambda: spectra, "spectra")
else:
    show.empty("Every layer is too large for its spectrum to be kept. Smaller ones:", "curvbench run suites/mlp")
