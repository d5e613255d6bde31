"""The dashboard: ``curvbench dashboard``, or ``streamlit run dashboard/app.py``.

Reads the folder that ``CURVBENCH_RESULTS`` names, else the shipped sample.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

import controls
import guard
import show
import source

# The folder is not called "pages", because Streamlit runs the files of such a folder until it has seen st.navigation.
PAGES = {
    "page/overview.py": "Overview",
    "page/tradeoff.py": "Trade-off",
    "page/accuracy.py": "Accuracy",
    "page/matrices.py": "Matrices",
    "page/cost.py": "Cost",
    "page/cells.py": "Cells",
    "page/training.py": "Training",
    "page/compare.py": "Compare",
    "page/history.py": "History",
    "page/claims.py": "Claims",
}
RUN = "curvbench run suites/mlp"


def main() -> None:
    """Show the navigation, the filters that all pages share, and the page."""
    st.set_page_config("curvbench", layout="wide")
    page = st.navigation([st.Page(path, title=title) for path, title in PAGES.items()])
    if weak := guard.switched_off():
        st.error(f"The protection against other sites is switched off: {', '.join(weak)}.")
        show.empty(
            "Remove these settings from `.streamlit/config.toml`, or start it by its own verb.", "curvbench dashboard"
        )
        return
    view = source.look()
    _follow()  # first, so that a page that ends here appears when it can
    if view.fault:
        st.error(show.plain(view.fault))
        show.empty("Name a folder that `curvbench run` has written.", "curvbench dashboard results")
    elif not view.runs:
        st.header("Nothing has been run yet")
        show.empty(f"{show.plain(source.results())} holds no run. This command makes one in about a minute:", RUN)
    if not view.runs:
        return
    with st.sidebar:
        run = controls.pick_run()
    frame = _rows(run)
    with st.sidebar:
        if frame is not None:
            controls.pick_problem(frame)
            controls.pick_probes(frame)
            controls.pick_one("Camera button saves", show.IMAGES, "image")
        st.caption(f"{'Shipped sample' if source.is_sample() else 'Results'}: {show.plain(source.results())}")
    if frame is None:
        show.empty("This run has no cell yet. Finished cells appear here by themselves.", RUN)
    else:
        page.run()


def _rows(run: Path) -> pd.DataFrame | None:
    """The rows of a run, or None without any; faults in its files become warnings on the page."""
    try:
        frame, damaged = source.rows_and_damage(run)
    except (ValueError, OSError) as error:
        if not run.exists() and run not in source.list_again().runs.values():
            st.rerun()  # with the runs that are there
        st.error(show.plain(error))
        st.stop()
    show.warnings([*source.lost(), *damaged, *source.record_and_damage(run)[1]])
    return None if frame.empty else frame


@st.fragment(run_every=5)
def _follow() -> None:
    """Run the script again when new cells have come."""
    if source.changed():
        st.rerun()


with source.at_work():
    main()
