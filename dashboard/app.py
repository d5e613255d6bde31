"""The dashboard: ``curvbench dashboard``, or ``streamlit run dashboard/app.py``.

Reads the folder that ``CURVBENCH_RESULTS`` names, else the shipped sample.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

import address
import controls
import guard
import menu
import show
import source
from curvbench.plot.highlight import SCRIPT

# The folder is not called "pages", because Streamlit runs the files of such a folder until it has seen st.navigation.
PAGES = {
    "page/overview.py": "Overview",
    "page/tradeoff.py": "Trade-off",
    "page/accuracy.py": "Accuracy",
    "page/layers.py": "Layers with the error",
    "page/settings.py": "Damping, samples, age, digits",
    "page/matrices.py": "Matrices",
    "page/cost.py": "Cost",
    "page/cells.py": "Measurements",
    "page/training.py": "Training",
    "page/tuning.py": "Tuning",
    "page/runs.py": "Runs",
    "page/compare.py": "Compare",
    "page/history.py": "History",
    "page/claims.py": "Claims",
    "page/methods.py": "Methods and words",
}
RUN = "curvbench run suites/mlp"
# Streamlit's margins leave half of a narrow window to the page.
MARGINS = """<style>
[data-testid=stMainBlockContainer] { padding-top: 3rem }
@media (max-width: 1200px) { [data-testid=stMainBlockContainer] { padding-left: 1.5rem; padding-right: 1.5rem } }
</style>"""


def main() -> None:
    """Show the navigation, the filters that all pages share, and the page."""
    st.set_page_config("curvbench", layout="wide")
    st.html(MARGINS)
    weak = guard.switched_off()
    view = None if weak else source.look()
    page = st.navigation(_pages(menu.coming_run() if view else None), expanded=True)
    if view is None:
        st.error(f"The protection against other sites is switched off: {', '.join(weak)}.")
        show.empty(
            "Remove these settings from `.streamlit/config.toml`, or start it by its own verb.", "curvbench dashboard"
        )
        return
    _follow()  # first, so that a page that ends here appears when it can
    if view.fault:
        st.error(show.plain(view.fault))
        show.empty("Name a folder that `curvbench run` has written.", "curvbench dashboard results")
    elif not view.runs:
        st.header("Nothing has been run yet")
        show.empty(f"{show.plain(source.results())} holds no run. This command makes one in about a minute:", RUN)
    if not view.runs:
        return
    address.read(page.url_path)
    with st.sidebar:
        run = controls.pick_run()
    frame = _rows(run)
    with st.sidebar:
        if frame is not None:
            controls.pick_problem(frame)
            controls.pick_probes(frame)
            controls.pick_pins(frame)
            controls.pick_one("Camera button saves", show.IMAGES, "image")
            controls.pick_archived()
        st.caption(f"{'Shipped sample' if source.is_sample() else 'Results'}: {show.plain(source.results())}")
    st.html(f"<script>{SCRIPT}</script>", unsafe_allow_javascript=True)
    address.say_gone()
    if frame is None:
        show.empty("This run has no measurement yet. Finished ones appear here by themselves.", RUN)
        return
    try:
        page.run()
    finally:  # also of a page that has stopped early
        address.write()


def _pages(run: Path | None) -> list[st.Page]:
    """Every page; the menu leaves out those that the run cannot fill, which answer links all the same."""
    hidden = menu.unfilled(run) if run else set()
    return [
        st.Page(path, title=title, visibility="hidden" if Path(path).stem in hidden else "visible")
        for path, title in PAGES.items()
    ]


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
