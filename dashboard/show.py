"""Figures and tables on a page, with their downloads. No text from a result file is read as Markdown or HTML."""

from __future__ import annotations

import html
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from curvbench.analysis import exact, summary, tables, views
from curvbench.plot.axes import has_values
from curvbench.plot.emphasis import emphasize
from curvbench.plot.highlight import SCRIPT
from curvbench.words import one_line

if TYPE_CHECKING:
    import plotly.graph_objects as go

IMAGES = ("svg", "png")
TALLEST = 12  # rows that are shown without scrolling, so that the figure below stays in sight
NUMBER = 92  # pixels of the longest number
WIDEST = 60  # letters of a column that is as wide as its texts
LONGEST_WHOLE = 1e5  # numbers of epochs or samples that are below it need no decimals
STYLED = 2000  # rows: the browser formats the numbers of a longer table, for here it takes too long
CHANGE = "change"  # the column that holds relative changes
WARNINGS = 3  # that are in sight
MOST = 5000  # rows of a table and marks of a figure that a browser is sent
LETTER, PADDING = 6.5, 20  # pixels of a column of texts: per letter, and beside the text
TABLES_FIRST = 1.0  # seconds in which a browser draws the tables that it was sent
WORDS = {  # on screen; files keep their names
    **{"probe": "method", "scope": "layer or phase"},
    **{"cell_id": "measurement", "started_at": "started"},
}
RANGE = " range"  # ends the name of the column behind its metric's
COLUMNS = (*summary.COLUMNS, summary.RATED, *summary.TRAINED, *summary.PACED)
SHORT = {f"{column.metric} ({column.scope})": one_line(column.heading) for column in COLUMNS}


def plain(text: object) -> str:
    """A text from a result file, escaped so that Markdown shows every sign."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", str(text))  # Markdown escapes signs of ASCII alone


def figure(drawn: go.Figure, data: Callable[[], pd.DataFrame], name: str, **facts: str) -> None:
    """A figure with downloads of its data as CSV and of itself as HTML; its camera button saves SVG or PNG.

    ``facts``: what the data are of, such as their metric, as further columns of the CSV. A figure without a single
    value is replaced by a sentence with the figure's notes.
    """
    if not has_values(drawn):
        notes = html.unescape((drawn.layout.title.subtitle.text or "").replace("<br>", " "))
        nothing(f"No finite value is left to draw under these filters. {plain(notes)}".strip())
        return
    emphasize(drawn, st.session_state["labels"], st.session_state["pins"])
    _let_tables_be_drawn()
    image = {"format": st.session_state.get("image") or IMAGES[0], "filename": name, "scale": 2}
    config = {"toImageButtonOptions": image, "displaylogo": False}
    st.plotly_chart(drawn, key=f"figure {name}", config=config)
    with st.container(horizontal=True):
        _download("Data (CSV)", lambda: _csv(data().assign(**facts)), f"{name}.csv", "text/csv")
        _download("Figure (HTML)", lambda: drawn.to_html(post_script=SCRIPT).encode(), f"{name}.html", "text/html")


def _let_tables_be_drawn() -> None:
    """Wait before the first figure of a session: loading Plotly blocks the browser for a second, tables included."""
    if "figures" not in st.session_state and st.context.url:  # tests have no browser, and therefore no address
        time.sleep(TABLES_FIRST)
    st.session_state["figures"] = True


def table(data: pd.DataFrame, name: str, colours: Mapping[str, str] | None = None, **settings: Any) -> None:
    """A sortable table with its meaning in the headings and a download as CSV; ``colours`` by text."""
    shown = _in_words(data.head(MOST))
    if len(shown) < len(data):
        st.caption(f"The first {MOST:,} of {len(data):,} rows; the file below has all of them.")
    floats: dict[Any, Any] = {column: _format(data[column]) for column in data.select_dtypes("float")}
    styled: Any = shown.style.format(floats, na_rep="") if len(data) <= STYLED else shown
    if colours and len(data) <= STYLED:
        styled = styled.map(lambda text: f"color: {colours[text]}" if text in colours else "")
    settings |= {"placeholder": "", "height": "content" if len(data) <= TALLEST else "auto"}
    st.dataframe(styled, hide_index=True, column_config=columns(shown), key=f"table {name}", **settings)
    _download("Table (CSV)", lambda: _csv(data), f"{name}.csv", "text/csv")


def _in_words(data: pd.DataFrame) -> pd.DataFrame:
    """A table as people read it: metrics by their names."""
    return data.assign(metric=data["metric"].astype(object).map(views.plain)) if "metric" in data else data


def exact_cost(frame: pd.DataFrame) -> None:
    """The table of what the exact Fisher costs, one row per problem."""
    costs = exact.table(frame).rename(columns=one_line).dropna(axis=1, how="all")
    table(costs.rename_axis("problem").reset_index(), "exact")


def _format(column: pd.Series) -> Callable[[float], str]:
    known = column[column.notna()]
    if len(known) and (known % 1 == 0).all() and known.abs().max() < LONGEST_WHOLE:
        return _whole
    return _percent if column.name == CHANGE else summary.digits


def _whole(number: float) -> str:
    return f"{number:.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:+.3g} %"


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
            heading = RANGE.strip() if name.endswith(RANGE) else WORDS.get(name, name)
            width = round(LETTER * int(max(widest, len(heading)))) + PADDING
            configs[name] = st.column_config.Column(heading, help=help, pinned=name == pinned, width=width)
        elif len(data) > STYLED and pd.api.types.is_float_dtype(data[name]):
            digits = "percent" if name == CHANGE else "%.3g"
            configs[name] = st.column_config.NumberColumn(_heading(name), help=help, format=digits)
        elif name == "value":
            configs[name] = st.column_config.Column(width=NUMBER)
        elif name in SHORT or help:
            configs[name] = st.column_config.Column(_heading(name), help=help)
    return configs


def _heading(name: str) -> str:
    """The heading of a column of a metric: that of the summary, else the metric's name for people."""
    base, _, scope = name.removeprefix("1 - ").partition(" (")
    return SHORT.get(name) or name.replace(
        f"{base} (" if scope else base, f"{views.plain(base)} (" if scope else views.plain(base)
    )


def empty(what: str, command: str) -> None:
    """Say what is missing, and show the command that makes it."""
    st.info(what, icon=":material/info:")
    st.code(command, language="sh", wrap_lines=True)


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
