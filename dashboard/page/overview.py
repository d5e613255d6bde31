"""What the run has found: the verdict, the methods that a person compares first, the table, and how it was made."""

from __future__ import annotations

import shlex

import pandas as pd
import streamlit as st

import controls
import show
import source
from curvbench.analysis import exact, frames, summary, views
from curvbench.analysis.roles import COMPARED
from curvbench.analysis.views import FLOPS, GAP_CLOSED
from curvbench.plot.frontier import tradeoff_figure
from curvbench.plot.overview import status_figure
from curvbench.plot.training import curves_figure

FACTS = {  # of the record, in words
    **{"device_name": "machine", "torch_version": "PyTorch", "python_version": "Python"},
    **{"git_sha": "commit", "platform": "system"},
}
COSTS = ("flops.", "memory.", "time.")
LONGEST = 28  # letters of a fact

frame, record = controls.frame(), source.record(controls.run())
problem = controls.problem()
rows = frames.of_problem(frame, problem)
ends = views.cells(frame)
planned = max(len(record.get("cells", [])), len(ends))

st.header(show.plain(frames.shown_problem(frame, problem)))
if rows.empty:
    controls.say_not_run()
else:
    facts_of_problem = summary.title(rows, problem).removeprefix(f"{problem}, ").partition(" ±")[0]
    st.caption(show.plain(facts_of_problem))
    verdict = source.verdict(controls.run(), problem, tuple(st.session_state["probes"]), len(ends) < planned)
    st.markdown("\n".join(f"- {show.plain(sentence)}" for sentence in verdict))

if check := source.check(controls.run()):
    said = show.plain(f"{' '.join(check.sentences)} Checked against {check.against}, {check.checked_at[:10]}.")
    (st.success if check.passed else st.error)(said, icon=":material/verified:" if check.passed else ":material/gavel:")
elif baselines := source.baselines(controls.run()):
    command = f"curvbench check {shlex.quote(str(controls.run()))} --against {baselines}"
    st.caption(show.plain(f"This suite has a baseline. This command says whether the run is worse: {command}"))

failed = summary.failures(frame)
if len(failed):
    st.warning(
        f"{len(failed)} of {planned} measurements have no value; they are listed at the end.", icon=":material/error:"
    )
figure_place = st.container()

if exact.is_measured(rows):
    st.caption(show.plain(f"{exact.title(rows)}. {exact.LEGEND}"))
    show.exact_cost(frame)
elif not rows.empty:
    medians = views.ranked(summary.table(rows, problem), summary.columns(rows, problem))
    low, high = summary.ranges(rows, problem)
    table = views.with_ranges(medians, low, high, summary.noisy(rows, problem)).rename_axis("probe").reset_index()
    judged = [name for name in map(str, table) if name.startswith((summary.FIRST, *COSTS))]  # what the verdict is about
    table = table[["probe", *judged, *table.columns.drop(["probe", *judged])]]
    table.insert(1, "status", table["probe"].map(summary.statuses(rows, problem)))
    st.caption(show.plain(summary.legend(rows).partition("; *")[0]))
    show.table(table if (table["status"] != "ok").any() else table.drop(columns="status"), "summary")

    ranked = views.ranking(medians, summary.columns(rows, problem))
    if len(ranked):
        st.subheader("Best of each column")
        names = [views.Quantity(*pair).label for pair in zip(ranked["metric"], ranked["scope"], strict=True)]
        listed = ranked.assign(metric=names).drop(columns="scope")
        show.table(listed[[name for name in listed if name != "better"] + ["better"]], "ranking")

if len(failed):
    st.subheader("Without a value")
    show.table(failed[["label", "status", "reason"]], "failures")
    statuses = views.status(frame)
    show.figure(status_figure(statuses, frames.surrogates(frame)), lambda: statuses, "status")

st.subheader("What was run")
with st.container(horizontal=True, gap="medium"):
    st.metric("Measurements", f"{len(ends)} of {planned}", width="content")
    st.metric("Succeeded", int((ends["status"] == "ok").sum()), width="content")
    st.metric("Without a value", int((ends["status"] != "ok").sum()), width="content")
    st.metric("Rows", f"{len(frame):,}", width="content")
environment = record.get("environment", {})
facts = {name: str(environment[key])[:LONGEST] for key, name in FACTS.items() if environment.get(key)}
facts |= {key: ", ".join(map(str, ends[key].unique())) for key in ("dtype", "threads", "parameters")}
facts = {"started": str(ends["started_at"].min())[:19]} | facts | {"run": controls.run().name}
listed = pd.DataFrame(facts.items(), columns=["fact", "of this run"])
st.dataframe(listed, hide_index=True, key="table facts", height="content")
for entry in record.get("commands", []):
    st.code(entry.get("command"), language="sh", wrap_lines=True)

with figure_place:  # drawn last, because the tables need not wait for it
    first = rows[frames.labels(rows, "probe").isin(COMPARED)]
    compared = first if first["cell_id"].nunique() > 1 else rows
    points = views.tradeoff(compared, problem, FLOPS, GAP_CLOSED) if len(rows) else pd.DataFrame({"x": [], "y": []})
    if points[["x", "y"]].notna().all(axis=1).any():
        drawn = tradeoff_figure(points, frames.shown_problem(rows, problem), FLOPS, GAP_CLOSED, named=points["probe"])
        show.figure(drawn, lambda: views.headed(points, FLOPS, GAP_CLOSED), "compared", problem=problem)
    elif summary.is_trained(rows):
        metric = summary.columns(rows, problem)[0].metric
        curves = views.curves(rows, problem, metric)
        drawn = curves_figure(curves, views.endings(rows), frames.shown_problem(rows, problem), metric)
        show.figure(drawn, lambda: curves, "course", metric=metric, problem=problem)
