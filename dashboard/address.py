"""The address of a view: the run and every choice stand in it, so that it is a link to the same view tomorrow.

Choices are taken from the address at the first look at a page, after a link or a step back, and written into it after
each look in place of what stood there: the history of the browser has one entry per page, not one per choice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import streamlit as st

import show

SHARED = ("run", "problem", "probes", "pins", "image", "archived")  # choices that go along from page to page
ALWAYS = ("run", "problem", "baseline")  # written also where they are the usual ones, which new results may change


def read(page: str) -> None:
    """Begin a look at a page."""
    state = st.session_state
    state["usual"] = {}
    state["asked"], state["gone"] = {}, []
    if state.get("page") != page:
        state["page"] = page
        state["asked"] = {key: st.query_params.get_all(key) for key in st.query_params}
        if "run" in state["asked"]:  # a whole address: choices that are not in it are the usual ones
            for key in SHARED:
                state.pop(key, None)


def begin(label: str, key: str, options: Sequence[Any], usual: Any) -> None:
    """Give a widget its first value: an option that the address asks for, else the usual one.

    A warning says which options of the address are not here.
    """
    state, several = st.session_state, isinstance(usual, list)
    state["usual"][key] = usual
    asked = state["asked"].get(key, [])
    by_text = {_text(option): option for option in options}
    if gone := [text for text in asked if text not in by_text]:
        _say_gone(key, label.partition(",")[0], f"{', '.join(map(show.plain, gone))}, which is not here")
    chosen = [by_text[text] for text in asked if text in by_text] or (usual if several else [usual])
    current = state.get(key)
    if several and not asked and current is not None:
        kept = [option for option in current if option in options]
        state[key] = kept if kept or not current else usual
    elif asked or current is None or (not several and current not in options):
        state[key] = chosen if several else chosen[0]


def begin_number(label: str, key: str, usual: float) -> None:
    """Give a widget for numbers its first value."""
    st.session_state["usual"][key] = usual
    for text in st.session_state["asked"].get(key, []):
        try:
            st.session_state[key] = float(text)
        except ValueError:
            _say_gone(key, label, f"{show.plain(text)}, which is no number")
    st.session_state.setdefault(key, usual)


def say_gone() -> None:
    """Warn above the page of choices of the sidebar that the address asks for and that are not here."""
    for text in st.session_state["gone"]:
        st.warning(text, icon=":material/link_off:")


def _say_gone(key: str, what: str, gone: str) -> None:
    text = f"{what}: the link asks for {gone}."
    if key in SHARED:
        st.session_state["gone"].append(text)
    else:
        st.warning(text, icon=":material/link_off:")


def write() -> None:
    """End a look at a page: the address becomes that of what is shown."""
    choices = {}
    for key, usual in st.session_state["usual"].items():
        value = st.session_state.get(key, usual)
        if value is not None and (value != usual or key in ALWAYS):
            choices[key] = [_text(part) for part in value] if isinstance(value, list) else _text(value)
    query = urlencode(choices, doseq=True, safe="/:,=[]()")  # no sign is left in it that ends a script
    target = json.dumps(f"?{query}")
    page = st.session_state["page"]  # the same script is not run again, but after another page
    script = f"/* {json.dumps(page)} */ window.history.replaceState(window.history.state, '', {target})"
    st.html(f"<script>{script}</script>", unsafe_allow_javascript=True)


def _text(option: Any) -> str:
    return str(option).lower() if isinstance(option, bool) else str(option)
