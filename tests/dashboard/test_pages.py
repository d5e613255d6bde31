"""Every page in Streamlit's own test harness: on the sample, on nothing, on failures, on damage, on hostile names."""

from __future__ import annotations

import gc
import json
import math
import re
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_measure import Fake, Toy
from frames import START, failed_cell, fisher_cell, raw, write_run

from curvbench import probe, problem, store
from curvbench.spec import Cell, Row, Training
from curvbench.spec.pictures import Blocks, Spectrum

pytest.importorskip("plotly", reason="the dashboard needs the extra `dashboard`")
testing = pytest.importorskip("streamlit.testing.v1", reason="the dashboard needs the extra `dashboard`")

ROOT = Path(__file__).parents[2]
APP = ROOT / "dashboard" / "app.py"
PAGES = sorted(path.stem for path in (APP.parent / "page").glob("*.py"))
SAMPLE = ROOT / "data" / "sample"
HOSTILE = "<img src=x onerror=alert(1)> **b** [a](http://x) :red[c] $d$"


def show(page: str, **query: str):  # type: ignore[no-untyped-def]
    """A page as a session first sees it."""
    at = testing.AppTest.from_file(APP, default_timeout=60)
    at.query_params.update(query)
    at.run()
    if page != "overview" and not at.exception:
        at.switch_page(f"page/{page}.py").run()
    assert not at.exception, at.exception[0].stack_trace
    return at


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    monkeypatch.setenv("CURVBENCH_RESULTS", str(folder))
    return folder


def test_every_page_can_be_reached() -> None:
    source = APP.read_text()
    assert [page for page in PAGES if f'"page/{page}.py"' not in source] == []
    assert len(PAGES) == source.count('"page/')


@pytest.mark.parametrize("page", PAGES)
def test_the_shipped_sample(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CURVBENCH_RESULTS", raising=False)
    at = show(page)
    assert at.header[0].value
    assert not at.error
    assert "Shipped sample" in at.sidebar.caption[0].value
    charts = [element.proto for element in at.get("plotly_chart")]
    saved = [button.proto.label for button in at.get("download_button")]
    assert saved.count("Data (CSV)") == saved.count("Figure (HTML)") == len(charts)
    assert saved.count("Table (CSV)") == len(at.dataframe) - (page in ("overview", "cells")), "facts are in its rows"
    assert {json.loads(chart.config)["toImageButtonOptions"]["format"] for chart in charts} <= {"svg"}
    for chart in charts:
        figure = json.loads(chart.spec)
        assert untitled(figure) == []
        said = [text for text in titles(figure) if re.search("is (better|best)", text)]
        assert said or re.match("How the measurements|Layer .*(entries|norms)", figure["layout"]["title"]["text"])


@pytest.mark.parametrize("suite", ["mlp", "training"])
def test_the_menu_has_the_pages_that_the_run_fills(suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import menu  # of the dashboard

    monkeypatch.delenv("CURVBENCH_RESULTS", raising=False)
    left_out: list[set[str]] = []
    unfilled = menu.unfilled
    monkeypatch.setattr(menu, "unfilled", lambda run: left_out.append(unfilled(run)) or left_out[-1])
    (run,) = store.runs_below(SAMPLE / suite)
    at, empty = show("overview", run=f"{suite}/{run.name}"), set()
    for page in PAGES:
        at.switch_page(f"page/{page}.py").run()
        assert not at.exception
        assert left_out[-1] == left_out[0]
        if at.main.info and not at.main.dataframe and not at.get("plotly_chart"):
            empty.add(page)
    assert left_out[0] | {"compare"} == empty | {"compare"}, "with two runs Compare asks for the other one"


def titles(figure: dict[str, Any]) -> list[str]:
    """The titles of the axes, that of colours too."""
    scales = [trace["colorbar"] for trace in figure["data"] if trace.get("showscale", True) and "colorbar" in trace]
    across = [axis for name, axis in figure["layout"].items() if re.match("[xy]axis", name)]
    return [scale.get("title", {}).get("text", "") for scale in [*scales, *across]]


def untitled(figure: dict[str, Any]) -> list[str]:
    """Axes of numbers that say nothing of what they show; names need no title, nor do rows and columns of a matrix."""
    numbers = [
        f"{side}axis"
        for side in "xy"
        if any(t["type"] != "heatmap" and not isinstance(t[side], list) for t in figure["data"] if side in t)
    ]
    return [name for name in numbers if not figure["layout"][name].get("title", {}).get("text")]


def test_the_sample_is_small_and_tells_nothing_of_its_machine() -> None:
    files = [path for path in SAMPLE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 600_000
    for run in store.runs_below(SAMPLE):
        text = (run / "run.json").read_text()
        assert "/tmp" not in text and '"host"' not in text
        assert {cell["id"] for cell in store.read_run(run)["cells"]} == set(store.load(run)["cell_id"])


@pytest.mark.parametrize("page", PAGES)
def test_an_empty_folder_says_what_to_run(page: str, results: Path) -> None:
    at = testing.AppTest.from_file(APP, default_timeout=60).run()
    assert not at.exception
    assert at.header[0].value == "Nothing has been run yet"
    assert at.code[0].value.startswith("curvbench run ")


@pytest.mark.parametrize("page", PAGES)
def test_a_folder_that_is_not_there(page: str, results: Path) -> None:
    results.rmdir()
    at = show(page)
    assert "no results at" in at.error[0].value.replace("\\", "")
    assert at.code


@pytest.mark.parametrize("page", PAGES)
def test_failed_cells_are_shown(page: str, results: Path) -> None:
    write_run(results, "r1", [(Fake(), Toy(), failed_cell()), (Fake(damping=0.5), Toy(), failed_cell())])
    at = show(page)
    assert at.header[0].value
    if page == "overview":
        (failures,) = [frame.value for frame in at.dataframe if "reason" in frame.value]
        assert failures["reason"].tolist() == ["not finished in 4 s"] * 2
        assert [metric.value for metric in at.metric][:3] == ["2 of 2", "0", "2"]
    if page == "cells":
        assert "timeout" in at.error[0].value


@pytest.mark.parametrize("page", PAGES)
def test_failed_cells_beside_good_ones(page: str, results: Path) -> None:
    cells = [(Fake(), Toy(), fisher_cell()), (Fake("slow"), Toy(), failed_cell())]
    write_run(results, "r1", cells, planned=3)
    at = show(page)
    if page == "overview":
        assert at.metric[0].value == "2 of 5"


@pytest.mark.parametrize("page", PAGES)
def test_damaged_fragments_are_named(page: str, results: Path) -> None:
    cells = write_run(results, "r1", [(Fake(), Toy(), fisher_cell()), (Fake("b"), Toy(), fisher_cell())]) / "cells"
    (cells / "c1.parquet").write_bytes((cells / "c1.parquet").read_bytes()[:500])
    (cells.parent / "run.json").write_text("{")
    at = show(page)
    assert any("set aside" in warning.value and "c1" in warning.value for warning in at.warning)


def test_much_damage_leaves_the_page_in_sight(results: Path) -> None:
    cells = write_run(results, "r1", [(Fake(), Toy(), fisher_cell())]) / "cells"
    for k in range(5):
        (cells / f"bad{k}.parquet").write_bytes(b"x")
    at = show("cells")
    assert len(at.warning) == 3
    (rest,) = [expander for expander in at.expander if expander.label == "2 more warnings"]
    assert rest.code[0].value.count("set aside") == 2


def test_nothing_but_damage(results: Path) -> None:
    cells = write_run(results, "r1", [(Fake(), Toy(), fisher_cell())]) / "cells"
    (cells / "c0.parquet").write_bytes(b"x")
    at = show("overview")
    assert any("set aside" in warning.value for warning in at.warning)
    assert "no measurement yet" in at.info[0].value


@pytest.mark.parametrize("page", PAGES)
def test_a_newer_schema_is_an_error_with_its_remedy(page: str, results: Path) -> None:
    path = write_run(results, "r1", [(Fake(), Toy(), fisher_cell())]) / "cells" / "c0.parquet"
    table = pq.read_table(path)
    newer = pa.array([store.SCHEMA_VERSION + 1] * len(table), pa.int64())
    pq.write_table(table.set_column(0, store.SCHEMA.field(0), newer), path)
    at = show(page)
    assert "update it" in at.error[0].value


def test_another_run_of_the_folder_can_still_be_chosen(results: Path) -> None:
    write_run(results, "r1", [(Fake(), Toy(), fisher_cell())])
    write_run(results, "r2", [])
    at = show("overview")
    assert "no measurement yet" in at.info[0].value
    at.selectbox(key="run").select("s/r1").run()
    assert at.metric[0].value == "1 of 1"


@pytest.mark.parametrize("page", PAGES)
def test_values_that_are_not_finite(page: str, results: Path) -> None:
    bad = [raw(r.metric, v, r.scope) for r, v in zip(fisher_cell(), [math.nan, math.inf, -math.inf] * 20, strict=False)]
    write_run(results, "r1", [(Fake(), Toy(), fisher_cell()), (Fake("bad"), Toy(), bad)])
    show(page)


@pytest.mark.parametrize("page", PAGES)
def test_names_are_shown_letter_by_letter(page: str, results: Path) -> None:
    probe, problem = Fake(HOSTILE), Toy(HOSTILE)
    cells = [
        (probe, problem, fisher_cell()),
        (Fake(), problem, failed_cell(reason=HOSTILE)),
        (Fake(), Toy(), fisher_cell()),
    ]
    for k, name in enumerate(("r1", "r2")):
        for path in (write_run(results, name, cells) / "cells").glob("c[02]*"):
            rows = pq.read_table(path).to_pandas()
            half = {
                column: rows[column].where(rows.index % 2 == 0, HOSTILE) for column in ("metric", "scope", "method")
            }
            whole = dict.fromkeys(("device", "dtype", "parameters", "device_name", "suite"), f"{HOSTILE} {k}")
            store.write_cell(path.parent, pa.Table.from_pandas(rows.assign(**half, **whole), schema=store.SCHEMA))
    at = show(page)
    widgets = [*at.selectbox, *at.multiselect, *at.toggle, *at.number_input]
    texts = [text for widget in widgets for text in (widget.label, widget.help)]
    for element in [*at.markdown, *at.header, *at.subheader, *at.caption, *at.info, *at.warning, *at.error]:
        assert not getattr(element, "allow_html", False)
        texts.append(element.value)
    for text in texts:
        assert not re.search(r"(?<!\\)(<img|\*\*b|\[a\]\(|:red|\$d)", text), text


def test_no_page_asks_for_html() -> None:
    """But for the script that writes the address, in which no sign of a name is left, and for constants."""
    constants = ("st.html(MARGINS)", 'st.html(f"<script>{SCRIPT}</script>"')
    for path in APP.parent.rglob("*.py"):
        text = path.read_text()
        assert "unsafe_allow_html" not in text and "components" not in text
        assert text.count("st.html") == sum(map(text.count, constants)) or path.name == "address.py"


def test_no_name_ends_the_script_that_writes_the_address(results: Path) -> None:
    hostile = "</script><script>alert('x')//\\\""
    write_run(results, "r1", [(Fake(hostile), Toy(hostile), fisher_cell())])
    at = show("cells", cell=f"{Fake(hostile).label} on {Toy(hostile).label}, seed 0 (c0)")
    (script,) = (body for element in at.get("html") if "history.state" in (body := element.proto.body))
    (said,) = re.fullmatch(
        r"<script>/\* \"cells\" \*/ [\w.]+\(window.history.state, '', \"([^\"<>']*)\"\)</script>", script
    ).groups()
    asked = parse_qs(said.removeprefix("?"))
    assert asked["problem"] == [Toy(hostile).label] and asked["run"] == ["s/r1"]


@pytest.mark.parametrize("page", PAGES)
def test_a_single_cell_without_training(page: str, results: Path) -> None:
    write_run(results, "r1", [(Fake(), Toy(), [Row("error.relative", 0.5)])])
    at = show(page)
    if page == "training":
        assert at.code[0].value.startswith("curvbench run ")


def test_the_filters_of_a_link_are_taken() -> None:
    run = next(path for path in (SAMPLE / "mlp").iterdir())
    y = "direction.cosine (network)"
    at = show("tradeoff", run=f"mlp/{run.name}", problem="mlp[epochs=10]", probes="kfac", y=y, log="false")
    assert at.selectbox(key="problem").value == "mlp[epochs=10]"
    assert at.selectbox(key="y").value == y
    assert at.multiselect(key="probes").value == ["kfac"]
    assert at.toggle(key="log").value is False
    (points,) = [frame.value for frame in at.dataframe]
    assert points["probe"].tolist() == ["kfac"]
    assert f"1 - {y}" in points


def test_a_link_to_what_is_not_there_shows_what_is() -> None:
    at = show("tradeoff", run="nowhere/r0", problem="gone", probes="gone", y="x")
    assert at.selectbox(key="y").value == "error.relative (layer blocks)"


@pytest.fixture
def every_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run of the script looks at the folder again."""
    import source

    monkeypatch.setattr(source, "HOLDS", 0.0)
    monkeypatch.setattr(source, "READING", math.inf)


def test_new_cells_appear(results: Path, every_look: None) -> None:
    folder = write_run(results, "r1", [(Fake(), Toy(), fisher_cell())], planned=1)
    at = show("overview")
    assert at.metric[0].value == "1 of 2"
    other = write_run(results / "elsewhere", "r1", [(Fake("b"), Toy(), fisher_cell())])
    content = pq.read_table(other / "cells" / "c0.parquet")
    renamed = content.set_column(3, store.SCHEMA.field(3), pa.array(["c9"] * len(content)))
    store.write_cell(folder / "cells", renamed)
    at.run()
    assert at.metric[0].value == "2 of 2"


def test_windows_share_a_look_at_the_files_and_what_was_read(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import source

    run = write_run(results, "r1", [(Fake(), Toy(), fisher_cell())])
    asked, state = [], store.state
    monkeypatch.setattr(store, "state", lambda run: asked.append(run) or state(run))
    for _ in range(3):
        show("overview").run()
    assert asked == [run]
    before = source.latest()
    assert before is source.latest() and len(before) > 1
    store.write_cell(run / "cells", pq.read_table(run / "cells" / "c0.parquet").slice(1))
    monkeypatch.setattr(source, "HOLDS", 0.0)
    monkeypatch.setattr(source, "READING", math.inf)
    assert len(source.latest()) == len(before) - 1
    replaced = weakref.ref(before)
    del before
    gc.collect()
    assert replaced() is None, "runs that grow would fill the memory"


def test_windows_follow_changes_one_after_another(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import source
    import turns

    run = write_run(results, "r1", [(Fake(), Toy(), fisher_cell())])
    windows: list[dict[str, Any]] = [{}, {}]

    def changed(window: dict[str, Any]) -> bool:
        monkeypatch.setattr(source, "st", SimpleNamespace(session_state=window))
        return source.changed()

    def work(window: dict[str, Any]) -> None:
        monkeypatch.setattr(source, "st", SimpleNamespace(session_state=window))
        with source.at_work():
            source.look()
            source.rows(run)

    def at_rest() -> None:
        monkeypatch.setattr(turns, "_next", 0.0)
        source._view.born -= 100

    for window in windows:
        work(window)
        assert not changed(window)
    at_rest()
    assert not any(map(changed, windows)), "nothing has changed"
    store.write_cell(run / "cells", pq.read_table(run / "cells" / "c0.parquet").slice(1))
    at_rest()
    assert list(map(changed, windows)) == [True, False], "the second one waits"
    work(windows[0])
    at_rest()
    assert list(map(changed, windows)) == [False, True], "the first one is up to date"
    work(windows[1])
    shutil.rmtree(results)
    source._view.born -= 100
    windows[0]["has_rows"] = False
    assert list(map(changed, windows)) == [True, False], "a page that shows nothing does not wait"


def test_every_window_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that always asks just after others, as all of them find changes again and again."""
    import turns

    monkeypatch.setattr(turns, "_waiting", {"closed": -1e9})
    monkeypatch.setattr(turns, "_served", set())
    turned = dict.fromkeys("abcdef", 0)
    for _ in range(30):
        monkeypatch.setattr(turns, "_next", 0.0)
        for window in turned:
            turned[window] += turns.has_come(window)
    assert min(turned.values()) >= 3


@pytest.mark.parametrize("page", ["cells", "claims", "compare", "history", "overview"])
def test_runs_that_vanish_after_the_look(page: str, results: Path) -> None:
    write_claims(results, "r0", [("kfac", 0.5, 0)], False)
    runs = [write_run(results, name, [(Fake(), Toy(), fisher_cell())]) for name in ("r1", "r2")]
    at = show("overview", run="s/r2")
    for run in (*runs, results / "cwngd_t1_mnist" / "r0"):
        shutil.rmtree(run)
    at.switch_page(f"page/{page}.py").run()
    assert not at.exception, at.exception[0].stack_trace
    said = " ".join(element.value.replace("\\", "") for element in [*at.warning, *at.info])
    assert {"cells": "was removed", "overview": ""}.get(page, "no results at") in said


def test_texts_on_pages_are_short_legible_and_as_different_as_in_the_files() -> None:
    import source

    long, other = "a" * 10_000, "a" * 9_999
    rows = pd.DataFrame({"probe": ["kfac", long, other, "\x1b[31m", None], "seed": range(5)})
    shown = source.categorical(rows)
    assert isinstance(shown["probe"].dtype, pd.CategoricalDtype)
    assert shown["probe"].nunique() == 4 and shown["probe"].isna().tolist() == [False] * 4 + [True]
    assert shown["probe"][0] == "kfac" and shown["probe"][3] == r"\x1b[31m"
    assert shown["probe"].dropna().astype(str).str.len().max() < 1.2 * source.LONGEST
    assert rows["probe"][1] == long


def test_a_browser_gets_part_of_what_is_too_much_and_the_file_has_all(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import show as shown

    monkeypatch.setattr(shown, "MOST", 3)
    cells = [(Fake(str(k)), Toy(), fisher_cell()) for k in range(8)]
    for name in ("r1", "r2"):
        write_run(results, name, cells)
    at = show("compare", differs="false")
    assert len(at.dataframe[0].value) == 3
    captions = [caption.value for caption in at.caption]
    assert any(re.match(r"The first 3 of \d+ rows; the file below has all", text) for text in captions)
    assert any(re.match("Every 3rd of 8 points is drawn; the data below has all", text) for text in captions)
    (chart,) = at.get("plotly_chart")
    assert sum(trace["mode"] == "markers" for trace in json.loads(chart.proto.spec)["data"]) == 3


def test_what_is_read_ahead_is_what_the_first_page_shows(results: Path) -> None:
    import source
    import warm

    write_run(results, "r1", [(Fake(), Toy(), fisher_cell())])
    run = write_run(results, "r2", [(Fake("b"), Toy(), fisher_cell())])
    warm.main()
    assert source.latest() is source._read(run, store.state(run))[0]


@pytest.mark.parametrize("damage", ["gone", "empty", "newer"])
def test_nothing_read_ahead_ends_the_dashboard(damage: str, results: Path) -> None:
    import warm

    if damage == "gone":
        results.rmdir()
    if damage == "newer":
        run = write_run(results, "r1", [(Fake(), Toy(), fisher_cell())])
        table = pq.read_table(run / "cells" / "c0.parquet")
        newer = pa.array([store.SCHEMA_VERSION + 1] * len(table), pa.int64())
        pq.write_table(table.set_column(0, store.SCHEMA.field(0), newer), run / "cells" / "c0.parquet")
    warm.main()


def kept(layer: str = "fc1", value: float = 1.0) -> Blocks:
    exact = np.diag([2.0, 2.0, 2.0, 2.0])
    spectrum = Spectrum(np.array([4.0, 3.0]), np.array([8.0, value]))
    return Blocks(layer, 2, exact, np.where(exact > 0, 4 * value, 0), {layer: spectrum})


def test_the_matrices_that_cells_kept(results: Path) -> None:
    cells = [(Fake(), Toy(), fisher_cell()), (Fake("b"), Toy(), fisher_cell()), (Fake("c"), Toy(), failed_cell())]
    run = write_run(results, "r1", cells)
    store.write_blocks(run, "c0", kept())
    store.write_blocks(run, "c1", kept(value=0.0))
    at = show("matrices", approximation="Fake", scaled="false")
    assert at.selectbox(key="approximation").options == ["Fake", "Fake[does=b]"]
    structure = at.dataframe[0].value.set_index("matrix")
    assert structure.loc["approximation", "norm"] == pytest.approx(2 * structure.loc["exact", "norm"])
    assert structure.loc["exact", "share on the diagonal"] == 1.0
    at.toggle(key="scaled").set_value(True).run()
    structure = at.dataframe[0].value.set_index("matrix")
    assert structure.loc["difference", "norm"] == pytest.approx(0.0, abs=1e-12)


def test_without_blocks_the_page_says_what_to_run(results: Path) -> None:
    write_run(results, "r1", [(Fake(), Toy(), fisher_cell())])
    at = show("matrices")
    assert "stored a block" in at.info[0].value
    assert at.code[0].value.startswith("curvbench run ")


def test_damaged_blocks_are_named(results: Path) -> None:
    run = write_run(results, "r1", [(Fake(), Toy(), fisher_cell())])
    store.write_blocks(run, "c0", kept())
    (run / "blocks" / "c0.npz").write_bytes(b"PK")
    said = [warning.value.replace("\\", "") for warning in show("matrices").warning]
    assert any("c0.npz: damaged, or no blocks of curvbench" in text for text in said)


@pytest.mark.parametrize("page", ["overview", "cells", "compare", "history"])
def test_every_damaged_part_is_named_and_the_rest_shown(page: str, results: Path) -> None:
    write_run(results, "r0", [(Fake(), Toy(), fisher_cell())])
    run = write_run(results, "r1", [(Fake(), Toy(), fisher_cell())])
    (run / "run.json").write_text('{"environment": [], "cells": [1], "commands": {}}')
    (run / "logs").mkdir(exist_ok=True)
    (run / "logs" / "c0.log").symlink_to("/etc/hostname")
    (results / "s" / "r2").symlink_to(results / "nowhere")
    at = show(page)
    said = " ".join(warning.value.replace("\\", "") for warning in at.warning)
    assert "run.json set aside: damaged: environment must be an object, got list" in said
    assert "r2 set aside: it is a link that leads nowhere" in said
    assert ("c0.log set aside: it is a link that leads out" in said) == (page == "cells")


@pytest.mark.parametrize(("name", "value"), [("server.enableCORS", False), ("server.enableXsrfProtection", False)])
def test_nothing_is_shown_without_the_protection(name: str, value: object, results: Path) -> None:
    import streamlit

    write_run(results, "r1", [(Fake(), Toy(), fisher_cell())])
    before = streamlit.get_option(name)
    streamlit.config.set_option(name, value)
    try:
        at = show("overview")
    finally:
        streamlit.config.set_option(name, before)
    assert name in at.error[0].value and not at.dataframe


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_blocks_with_hostile_names_and_values_that_are_not_finite(value: float, results: Path) -> None:
    run = write_run(results, "r1", [(Fake(HOSTILE), Toy(HOSTILE), fisher_cell())])
    store.write_blocks(run, "c0", kept(HOSTILE, value))
    at = show("matrices")
    for element in [*at.caption, *at.markdown, *at.subheader]:
        assert not re.search(r"(?<!\\)(<img|\*\*b|\[a\]\(|:red|\$d)", element.value), element.value


def trained(best: float, seconds: float) -> list[Row]:
    rows = [raw("test.accuracy", value, epoch=epoch) for epoch, value in enumerate((0.1, best / 2, best))]
    return [*rows, *(Row("train.seconds", seconds * epoch, epoch=epoch) for epoch in (1, 2))]


def test_time_to_a_target(results: Path) -> None:
    write_run(results, "r1", [(Fake(), Toy(), trained(0.9, 1.0)), (Fake("b"), Toy(), trained(0.8, 3.0))])
    at = show("training")
    table = at.dataframe[-1].value.set_index("probe")
    assert table.loc["Fake", ["reached", "epochs", "seconds"]].tolist() == [1, 2.0, 2.0]
    assert table.loc["Fake[does=b]", "reached"] == 0
    at.number_input[0].set_value(0.4).run()
    table = at.dataframe[-1].value.set_index("probe")
    assert table["reached"].tolist() == [1, 1]
    assert table.loc["Fake[does=b]", "seconds"] == 3.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0])
def test_trainings_with_values_that_are_not_finite(value: float, results: Path) -> None:
    write_run(results, "r1", [(Fake(), Toy(), trained(value, 1.0)), (Fake("b"), Toy(), failed_cell())])
    show("training")


def test_two_runs_are_compared(results: Path) -> None:
    write_run(results, "r1", [(Fake(), Toy(), fisher_cell(0.5))])
    write_run(results, "r2", [(Fake(), Toy(), fisher_cell(0.25))])
    at = show("compare")
    assert at.selectbox(key="baseline").value == "s/r1"
    assert "A: r1, B: r2" in at.main.caption[0].value.replace("\\", "")
    changes, times = (element.value.set_index(["metric", "scope"]) for element in at.dataframe)
    assert set(times.index.get_level_values(0)) == {"seconds", "seconds over SGD's"} and "verdict" not in times
    assert not set(times.index) & set(changes.index)
    row = changes.loc[("relative error", "network")]
    assert (row["a"], row["b"], row["verdict"]) == (0.5, 0.25, "better"), "A is the earlier one"
    assert not {"seed", "problem", "epoch"} & set(changes), "the same in all rows"
    at = show("history")
    assert at.dataframe[0].value["change"].tolist() == [-0.5]


def test_no_run_of_another_suite_is_compared_unasked(results: Path) -> None:
    write_run(results, "r1", [(Fake(), Toy(), fisher_cell())])
    (results / "s").rename(results / "other")
    write_run(results, "r2", [(Fake(), Toy(), fisher_cell(0.1))])
    at = show("compare", run="s/r2")
    assert at.selectbox(key="baseline").value is None and "No other run of this suite" in at.info[0].value
    at.selectbox(key="baseline").set_value("other/r1").run()
    assert len(at.dataframe)


def test_history_names_what_has_no_value_any_more(results: Path) -> None:
    write_run(results, "r1", [(Fake(), Toy(), fisher_cell()), (Fake("b"), Toy(), fisher_cell())])
    write_run(results, "r2", [(Fake(), Toy(), fisher_cell()), (Fake("b"), Toy(), failed_cell())])
    (chart,) = show("history").get("plotly_chart")
    assert "not drawn: Fake[does=b]" in json.loads(chart.proto.spec)["layout"]["title"]["subtitle"]["text"]


def test_the_baseline_stands_in_the_link(results: Path) -> None:
    for k, error in enumerate((0.5, 0.25, 0.1)):
        write_run(results, f"r{k}", [(Fake(), Toy(), fisher_cell(error))])
    at = show("compare", run="s/r1", baseline="s/r2")
    row = at.dataframe[0].value.set_index(["metric", "scope"]).loc[("relative error", "network")]
    assert (row["a"], row["b"]) == (0.1, 0.25)
    assert show("compare", run="s/r2").selectbox(key="baseline").value == "s/r1"


def test_the_command_and_the_log_of_a_cell(results: Path) -> None:
    run = write_run(results, "r1", [(Fake(), Toy(), fisher_cell()), (Fake("b"), Toy(), failed_cell())])
    (run / "logs" / "c1.log").write_text("a traceback")
    at = show("cells", cell="Fake[does=b] on Toy, seed 0 (c1)")
    assert "-p 'Fake[does=b]' -m Toy --seed 0" in at.code[0].value
    assert at.code[-1].value == "a traceback"


def test_ids_of_strangers_open_no_other_file(results: Path) -> None:
    (results.parent / "secret.log").write_text("secret")
    run = write_run(results, "r1", [(Fake(), Toy(), fisher_cell())])
    assert store.read_log(run, "../../../../secret") is None


def test_every_sign_of_a_text_stands_for_itself() -> None:
    import show

    assert show.plain("a*b_[c](d) 1 ± 2 é\n") == "a\\*b\\_\\[c\\]\\(d\\) 1 ± 2 é\n"


def test_claims_have_a_colour_for_each_verdict_and_neither_setting_hides_the_other(results: Path) -> None:
    """K-FAC leads by 20 points in the paper's own setting, and by one in its surrogate, whose run is the later."""
    for surrogate, lead in ((False, 0.2), (True, 0.01)):
        cells = [(name, 0.5 + lead * (name == "kfac"), seed) for name in ("adam", "kfac", "cwngd") for seed in range(3)]
        write_claims(results, "r2" if surrogate else "r1", cells, surrogate)
    (shown,) = [element for element in show("claims").dataframe if "SURROGATE" in element.value]
    verdicts = shown.value.set_index("claim")[["in its setting", "SURROGATE"]]
    assert verdicts.loc["K-FAC leads after epoch 1"].tolist() == ["holds", "holds in direction only"]
    assert verdicts.loc["CW-NGD leads after epoch 2"].tolist() == ["not measured", "not measured"]
    colours = set(re.findall(r"color: (#\w+)", shown.proto.arrow_data.styler.styles))
    assert colours == {"#2da44e", "#bf8700", "#a475f9", "#868e96"}, "the best of all is the same: undecided"


def test_results_without_papers_show_what_the_shipped_rows_say(results: Path) -> None:
    write_run(results, "r1", [(Fake(), Toy(), fisher_cell())])
    at = show("claims")
    assert not at.exception
    assert "the rows that curvbench ships" in at.main.caption[0].value
    assert "cost models hold" in at.markdown[-1].value
    (shown,) = [element for element in at.dataframe if "SURROGATE" in element.value]
    assert "holds" in set(shown.value["in its setting"]) and len(shown.value) > 60


def write_claims(results: Path, run_id: str, cells: list[tuple[str, float, int]], surrogate: bool) -> None:
    """A run of CW-NGD's Table I: probes with their accuracy after the first epoch, and seeds."""
    folder = results / "cwngd_t1_mnist" / run_id
    (folder / "cells").mkdir(parents=True)
    machine = {"git_sha": "abc", "git_dirty": False, "torch_version": "2.13", "device_name": "a cpu"}
    for name, accuracy, seed in cells:
        for k in (1, 4):
            network, training = problem("cnn", channels=4 * k, hidden=16 * k), Training(2, 0.1)
            cell = Cell("cwngd_t1_mnist", network, probe(name), seed, training=training, surrogate=surrogate)
            rows = [Row("test.accuracy", 0.1, epoch=0), Row("train.accuracy", accuracy, epoch=1)]
            context = store.Context(run_id, f"{name}-{seed}-{k}", START, machine)
            store.write_cell(folder / "cells", store.rows_to_table(cell, rows, context))
    store.write_run(folder, {"run_id": run_id})


def test_notes_are_set_on_the_page_at_home_alone(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import guard  # of the dashboard

    runs = [write_run(results, name, [(Fake(), Toy(), fisher_cell())]) for name in ("r1", "r2")]
    at = show("runs", run="s/r1")
    assert "other machines" in at.info[0].value and not at.text_input, "the harness has no address of loopback"
    monkeypatch.setattr(guard, "is_at_home", lambda: True)
    at.run()
    at.text_input[0].input("my best")
    at.text_input[2].input("wide, good")
    at.main.toggle[0].set_value(True)
    at.button[0].click().run()
    assert not at.exception and not at.error
    assert store.read_notes(runs[0]) == store.Notes("my best", "", ("wide", "good"), archived=True)
    assert list(at.dataframe[0].value["run"]) == ["s/r2", "s/r1"], "what is shown stays in the list"
    assert [box.options for box in at.selectbox if box.key == "run"] == [["s/r2", "my best · s/r1"]]

    others = show("runs")
    assert [box.options for box in others.selectbox if box.key == "run"] == [["s/r2"]]
    assert "1 archived run" in others.main.caption[0].value
    (switch,) = (toggle for toggle in others.sidebar.toggle)
    switch.set_value(True).run()
    assert [box.options for box in others.selectbox if box.key == "run"] == [["s/r2", "my best · s/r1"]]

    at.text_input[2].input("a, a")
    at.button[0].click().run()
    assert "different tags" in at.error[0].value and store.read_notes(runs[0]).tags == ("wide", "good")


def test_the_sample_takes_no_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    import guard  # of the dashboard

    monkeypatch.delenv("CURVBENCH_RESULTS", raising=False)
    monkeypatch.setattr(guard, "is_at_home", lambda: True)
    at = show("runs")
    assert "takes no notes" in at.info[0].value and not at.text_input


def test_who_is_at_home() -> None:
    import guard  # of the dashboard

    assert guard.is_local("127.0.0.1", None, {"Host": "localhost:8501"})
    assert guard.is_local("::1", None, {"Host": "[::1]:8501"})
    for address, client, headers in (
        ("0.0.0.0", None, {"Host": "localhost"}),
        (None, None, {}),
        ("127.0.0.1", "10.0.0.7", {}),
        ("127.0.0.1", None, {"Host": "evil.example:8501"}),
        ("127.0.0.1", None, {"Host": "localhost", "X-Forwarded-For": "10.0.0.7"}),
    ):
        assert not guard.is_local(address, client, headers)


def test_the_trials_of_a_search(results: Path) -> None:
    def trial(lr: float, accuracy: float) -> list[Row]:
        method = f"epochs=1,lr={lr}"
        return [Row(m, v, epoch=1, method=method) for m, v in (("test.accuracy", 0.1), ("valid.accuracy", accuracy))]

    rates = {0.01 * 2**k: 0.9 - abs(k - 3) / 10 for k in range(8)}
    cells = [(Fake(), Toy(), trial(lr, accuracy)) for lr, accuracy in rates.items()]
    write_run(results, "r1", cells, suite="s.tuning")
    at = show("tuning")
    best, every, shares = (table.value for table in at.dataframe)
    assert best[["lr", "value", "trials"]].to_numpy().tolist() == [[0.08, 0.9, 8]]
    assert len(every) == 8 and every["value"].is_monotonic_decreasing
    assert list(shares) == ["probe", "lr"]
    (chart,) = (json.loads(element.proto.spec) for element in at.get("plotly_chart"))
    assert [part["label"] for part in chart["data"][0]["dimensions"]] == ["lr", "validation accuracy"]


def test_what_a_check_said_stands_on_the_first_page(results: Path) -> None:
    run = write_run(results, "r1", [(Fake(), Toy(), fisher_cell())])
    store.write_check(
        run, store.Check("data/baselines", "2026-12-01T10:00:00+00:00", False, ("The run fails: *all*.",))
    )
    (said,) = show("overview").error
    assert said.value == r"The run fails\: \*all\*\. Checked against data\/baselines\, 2026\-12\-01\."
