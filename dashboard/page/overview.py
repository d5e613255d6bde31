"""The run: its settings, how its cells ended, and the best probes."""

from __future__ import annotations

import pandas as pd
import streamlit as st

import controls
import show
import source
from curvbench.analysis import frames, summary, views
from curvbench.plot.overview import status_figure

FACTS = ("device_name", "torch_version", "python_version", "git_sha", "platform")
LONGEST = 24  # letters of a fact

frame, record = controls.frame(), source.record(controls.run())
ends = views.cells(frame)
planned = max(len(record.get("cells", [])), len(ends))
environment = record.get("environment", {})

st.header("Overview")
with st.container(horizontal=True, gap="medium"):
    st.metric("Cells with rows", f"{len(ends)} of {planned}", width="content")
    st.metric("Succeeded", int((ends["status"] == "ok").sum()), width="content")
    st.metric("Without a value", int((ends["status"] != "ok").sum()), width="content")
    st.metric("Rows", f"{len(frame):,}", width="content")

st.subheader("What was run")
facts = {key: str(environment[key])[:LONGEST] for key in FACTS if environment.get(key)}
facts |= {key: ", ".join(map(str, ends[key].unique())) for key in ("dtype", "threads", "parameters")}
facts = {"started": str(ends["started_at"].min())[:19]} | facts | {"run": controls.run().name}
st.dataframe(pd.DataFrame([facts]), hide_index=True, key="table facts")
for entry in record.get("commands", []):
    st.code(entry.get("command"), language="sh", wrap_lines=True)

failed = summary.failures(frame)
if len(failed):
    show.table(failed[["label", "status", "reason"]], "failures")
figure_place = st.container()

problem = controls.problem()
rows = frames.of_problem(frame, problem)
if rows.empty:
    controls.say_not_run()
else:
    medians = summary.table(rows, problem)
    st.subheader(show.plain(summary.title(rows, problem).partition(" ±")[0]))
    st.caption(show.plain(summary.legend(rows).partition("; *")[0]))
    table = medians.dropna(axis=1, how="all").rename_axis("probe").reset_index()
    table.insert(1, "status", table["probe"].map(summary.statuses(rows, problem)))
    show.table(table if (table["status"] != "ok").any() else table.drop(columns="status"), "summary")

    ranked = views.ranking(medians, summary.columns(rows, problem))
    if len(ranked):
        st.subheader("Best of each column")
        show.table(ranked, "ranking")

with figure_place:  # drawn last, because the tables need not wait for it
    statuses = views.status(frame)
    show.figure(status_figure(statuses, frames.surrogates(frame)), lambda: statuses, "status")
