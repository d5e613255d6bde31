"""Which pages the menu offers: those that the chosen run can fill. The others answer a link to them all the same."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import streamlit as st

import source
from curvbench.analysis import digits, exact, trials, views
from curvbench.spec import PHASES

QUALITIES, COSTS = ("error.", "direction.", "health."), ("flops.", "memory.", "time.")
SETTINGS = {"damping.best", "error.population", "stale.error"}


def coming_run() -> Path | None:
    """The run of the page that is about to be made; None without runs.

    A choice since the last look comes before the address, which is still that of the last look, and the address before
    the last choice, because a link or a step back changes it.
    """
    runs, chosen, asked = source.runs(), st.session_state.get("run"), st.query_params.get("run")
    was_chosen = chosen != st.session_state.get("last run")
    names = [chosen, asked] if was_chosen else [asked, chosen]
    return next((runs[name] for name in names if name in runs), next(iter(source.unarchived().values()), None))


def unfilled(run: Path) -> set[str]:
    """The names of the pages that a run cannot fill; none if its rows cannot be read, which every page says."""
    try:
        fills = _fills(run, source.metrics(run))
    except (ValueError, OSError):
        return set()
    return {page for page, is_filled in fills.items() if not is_filled}


def _fills(run: Path, metrics: frozenset[tuple[str, str]]) -> dict[str, bool]:
    names = {name for name, _ in metrics}
    wholes = {name for name, scope in metrics if scope in (*views.WHOLES, *PHASES)}
    runs, rows = source.runs().values(), source.rows(run)
    return {
        "tradeoff": _any(wholes, QUALITIES) and _any(wholes, COSTS),
        "accuracy": any(name.startswith(QUALITIES[:2]) and scope not in views.WHOLES for name, scope in metrics),
        "layers": "error.share" in names,
        "settings": not names.isdisjoint(SETTINGS) or digits.is_measured(rows),
        "matrices": source.has_blocks(run),
        "cost": exact.is_measured(rows) or _any({name for name, scope in metrics if scope == "step"}, COSTS),
        "training": _any(names, ("train.", "test.")),
        "tuning": trials.are_trials(run.parent.name) and _any(names, ("valid.",)),
        "compare": len(runs) > 1,
        "history": sum(other.parent == run.parent for other in runs) > 1,
    }


def _any(names: Iterable[str], prefixes: tuple[str, ...]) -> bool:
    return any(name.startswith(prefixes) for name in names)
