"""What every method is, in a line with its paper, and what the words and metrics of the pages mean."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

import controls
import show
from curvbench import registry
from curvbench.analysis import frames, noise, views
from curvbench.plot.look import by_family, method
from curvbench.spec import METRICS, PHASES

WORDS = {
    "method": "What turns a gradient into a step: an approximation of the Fisher matrix, or an optimizer. On the "
    "command line a probe. In brackets stand the hyperparameters that are not the usual ones.",
    "reference": "A method that is exact where approximations are not, such as the whole Fisher or its layer blocks. "
    "It is a measure for the others and never the winner.",
    "measurement": "One method on one problem with one seed. In files a cell.",
    "Fisher matrix": "The mean of the outer products of the gradients of log-likelihoods: F. Approximations are F^.",
    "network, layer blocks": "The whole matrix; its blocks on the diagonal, one per layer, which most methods "
    "approximate.",
    "gap closed": "How far a step comes from a plain gradient step (0) to a step with the exact layer blocks (1).",
    "step quality": "The share of the best decrease of the loss's quadratic model that a step reaches at its best "
    "length.",
    "step, phases": f"A step of training consists of the gradient and of the phases {', '.join(PHASES[:-1])}.",
    "x SGD": "A cost over that of a plain gradient step on the same machine.",
    "Pareto front": "The methods that no other beats in quality and in cost at once.",
    "range": "The least and the greatest value over the seeds, and of times over the samples.",
    "noisy": f"A clock whose samples lie far apart: the middle half of them spans more than {noise.NOISY:.0%} of their "
    "median.",
}
PICTURES = {  # by metric
    **{"error.relative": "difference", "error.scale_optimal": "scaling", "direction.cosine": "angle"},
    **{"direction.quality": "quality", "direction.gap_closed": "gap", "error.share": "shares"},
    **{"damping.plateau": "plateau", "error.population": "samples", "flops.ratio": "cost"},
}
FOLDER = Path(__file__).parents[1] / "pictures"
ACROSS = 3

st.header("Methods and words")
here = {method(probe) for probe in frames.labels(controls.frame(), "probe").unique()}
probes = registry.probes()
names = [name for name in by_family(here) if name in probes] + [name for name in by_family(probes) if name not in here]
table = pd.DataFrame(
    {
        "method": names,
        "here": [name in here for name in names],
        "what it is": [(probes[name].__doc__ or "").partition("\n")[0] for name in names],
        "paper": [probes[name].about.source for name in names],
        "matrix": [probes[name].about.represents for name in names],
        "family": [probes[name].about.family for name in names],
    }
)
show.table(table, "methods")

st.subheader("Words")
st.table(pd.DataFrame({"meaning": map(show.plain, WORDS.values())}, index=list(WORDS)))  # wraps long texts

st.subheader("Metrics")
for start in range(0, len(PICTURES), ACROSS):
    for place, metric in zip(st.columns(ACROSS), list(PICTURES)[start : start + ACROSS], strict=False):
        with place:
            st.image(str(FOLDER / f"{PICTURES[metric]}.svg"))
            better = f", {views.meaning(metric).better} is better" if views.meaning(metric).better else ""
            st.caption(f"**{views.plain(metric)}**{better}: {show.plain(views.meaning(metric).text)}")
metrics = [
    {"name": metric.label, "meaning": metric.text, "better": metric.better, "unit": metric.unit, "in files": name}
    for name, metric in METRICS.items()
]
show.table(pd.DataFrame(metrics), "metrics")
