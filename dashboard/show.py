"""Figures and tables on a page, with their downloads. No text from a result file is read as Markdown or HTML."""

from __future__ import annotations

import html
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import streamlit as st

from curvbench.analysis import summary, tables, views

if TYPE_CHECKING:
    import plotly.graph_objects as go

IMAGES = ("svg", "png")
TALLEST = 12  # rows that are shown without scrolling, so that the figure below stays in sight
NUMBER = 92  # pixels of the longest number
WIDEST = 60  # letters of a column that is as wide as its texts
WARNINGS = 3  # that are in sight
STYLED = 2000  # rows: formatting the numbers of a longer table takes too long
MOST = 5000  # rows of a table and marks of a figure that a browser is sent
LETTER, PADDING = 7, 20  # pixels of a column of texts: per letter, and beside the text
TABLES_FIRST = 1.0  # seconds in which a browser draws the tables that it was sent
SHORT = {f"{c.metric} ({c.scope})": " ".join(c.heading.split()) for c in (*summary.COLUMNS, *summary.TRAINED)}


def plain(text: object) -> str:
    """A text from a result file, escaped so that Markdown shows every sign."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", str(text))  # Markdown escapes signs of ASCII alone


def figure(drawn: go.Figure, data: Callable[[], pd.DataFrame], name: str) -> None:
    """A figure with downloads of its data as CSV and of itself as HTML; its camera button saves SVG or PNG.

    A figure without a single value is replaced by a sentence with the figure's notes.
    """
    if not any(map(_has_values, drawn.data)):
        notes = html.unescape((drawn.layout.title.subtitle.text or "").replace("<br>", " "))
        nothing(f"No finite value is left to draw under these filters. {plain(notes)}".strip())
        return
    _let_tables_be_drawn()
    image = {"format": st.session_state.get("image") or IMAGES[0], "filename": name, "scale": 2}
    config = {"toImageButtonOptions": image, "displaylogo": False}
    st.plotly_chart(drawn, key=f"figure {name}", config=config)
    with st.container(horizontal=True):
        _download("Data (CSV)", lambda: _csv(data()), f"{name}.csv", "text/csv")
        _download("Figure (HTML)", lambda: drawn.to_html().encode(), f"{name}.html", "text/html")


def _has_values(trace: Any) -> bool:
    """Whether a trace has a finite value: in a heat map a colour, elsewhere a place."""
    parts = (trace.z,) if trace.type == "heatmap" else (trace.x, trace.y)
    are_known = [pd.notna(np.ravel(part)) if part is not None else np.array([], bool) for part in parts]
    return bool(np.logical_and.reduce(are_known).any())


def _let_tables_be_drawn() -> None:
    """Wait before the first figure of a session: loading Plotly blocks the browser for a second, tables included."""
    if "figures" not in st.session_state and st.context.url:  # tests have no browser, and therefore no address
        time.sleep(TABLES_FIRST)
    st.session_state["figures"] = True


def table(data: pd.DataFrame, name: str, colours: Mapping[str, str] | None = None, **settings: Any) -> None:
    """A sortable table with its meaning in the headings and a download as CSV; ``colours`` by text."""
    shown = data.head(MOST)
    if len(shown) < len(data):
        st.caption(f"The first {MOST:,} of {len(data):,} rows; the file below has all of them.")
    floats: dict[Any, Any] = {column: summary.digits for column in data.select_dtypes("float")}
    styled: Any = shown.style.format(floats, na_rep="") if len(data) <= STYLED else shown
    if colours and len(data) <= STYLED:
        styled = styled.map(lambda text: f"color: {colours[text]}" if text in colours else "")
    settings |= {"placeholder": "", "height": "content" if len(data) <= TALLEST else "auto"}
    st.dataframe(styled, hide_index=True, column_config=columns(shown), key=f"table {name}", **settings)
    _download("Table (CSV)", lambda: _csv(data), f"{name}.csv", "text/csv")


def thinned(points: pd.DataFrame) -> pd.DataFrame:
    """Points for a figure: every so many of them if a browser could not draw all, which the page then says."""
    step = math.ceil(len(points) / MOST)
    if step > 1:
        st.caption(f"Every {views.ordinal(step)} of {len(points):,} points is drawn; the data below has all of them.")
    return points.iloc[:: max(step, 1)]


def columns(data: pd.DataFrame) -> dict[str, Any]:
    """Settings of the columns of a table: short headings, and the meaning of a metric as help."""
    configs: dict[str, Any] = {}
    pinned = "probe" if "probe" in data else str(next(iter(data), ""))
    for name in map(str, data):
        meaning = views.meaning(name.removeprefix("1 - ").partition(" (")[0])
        help = plain(f"{name}: {meaning.text} ({meaning.better or 'neither way'} is better)") if meaning.text else None
        widest = data[name].astype(str).str.len().max()
        if pd.api.types.is_string_dtype(data[name]) and widest <= WIDEST:
            width = int(max(widest, len(name))) * LETTER + PADDING
            configs[name] = st.column_config.Column(pinned=name == pinned, width=width)
        elif name == "value":
            configs[name] = st.column_config.Column(width=NUMBER)
        elif name in SHORT or help:
            configs[name] = st.column_config.Column(SHORT.get(name, name), help=help)
    return configs


def empty(what: str, command: str) -> None:
    """Say what is missing, and show the command that makes it."""
    st.info(what, icon=":material/info:")
    st.code(command, language="sh")


def warnings(texts: Sequence[str]) -> None:
    """A warning for each text; behind the first few, the others are in one that opens, so that the page is in sight."""
    for text in texts[:WARNINGS]:
        st.warning(plain(text))
    if rest := texts[WARNINGS:]:
        with st.expander(f"{len(rest)} more warnings", icon=":material/warning:"):
            st.code("\n".join(rest), language=None, height=300)


def nothing(why: str) -> None:
    """Say why a view is empty; another choice of filters would fill it."""
    st.info(why, icon=":material/filter_alt:")


def _csv(data: pd.DataFrame) -> bytes:
    return tables.csv(data).encode()


def _download(label: str, content: Callable[[], bytes], file: str, kind: str) -> None:
    st.download_button(label, content, file, kind, key=f"download {file}", on_click="ignore", type="tertiary")
