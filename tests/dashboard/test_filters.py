"""Every filter of every page of every run of the sample, and of runs of which little is left: no page ends in an error.

A session walks through the options of all widgets of a page at once: the k-th look takes the k-th option of each, so
that as many looks as the longest widget has options have seen them all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_measure import Fake, Toy
from frames import failed_cell, fisher_cell, write_run

from curvbench import store
from curvbench.cli.app import main
from curvbench.plot.look import method
from curvbench.spec import Row, Status

pytest.importorskip("plotly", reason="the dashboard needs the extra `dashboard`")
testing = pytest.importorskip("streamlit.testing.v1", reason="the dashboard needs the extra `dashboard`")

ROOT = Path(__file__).parents[2]
APP = ROOT / "dashboard" / "app.py"
PAGES = sorted(path.stem for path in (APP.parent / "page").glob("*.py"))
SAMPLE = ROOT / "data" / "sample"
SAMPLES = [str(run.relative_to(SAMPLE)) for run in store.runs_below(SAMPLE)]
BY_METHOD = ("accuracy", "cost", "tradeoff", "training")  # pages that one method alone may leave without a figure


def session(page: str, **query: str | list[str]) -> Any:
    """A page as one sees it who follows a link to it."""
    at = testing.AppTest.from_file(APP, default_timeout=120)
    at.query_params.update(query)
    return look(at.switch_page(f"page/{page}.py"))


def look(at: Any) -> Any:
    """The page once more; what it shows, or why it shows nothing."""
    at.run()
    assert not at.exception, at.exception[0].stack_trace
    assert at.header
    assert len(at.get("plotly_chart")) + len(at.dataframe) + len(at.info) + len(at.error) > 0, "it says nothing"
    return at


def offered(at: Any, together: int) -> Iterator[tuple[Any, list[Any]]]:
    """The widgets of a page with all that can be chosen in them; of probes the variants of some methods together."""
    for kind in ("selectbox", "button_group"):
        yield from ((widget, widget.options) for widget in at.get(kind) if widget.key != "run")
    yield from ((widget, [not widget.value, widget.value]) for widget in at.toggle)
    for widget in at.multiselect:
        of_method = [list(group) for _, group in itertools.groupby(widget.options, method)]
        yield widget, [list(itertools.chain(*groups)) for groups in _batches(of_method, together)]


def _batches(parts: list[list[str]], size: int) -> list[list[list[str]]]:
    return [parts[start : start + size] for start in range(0, len(parts), size)]


def walk(at: Any, together: int = 1) -> None:
    """Look at a page until all that its widgets ever offered was chosen."""
    seen: set[tuple[str, str]] = set()
    while True:
        asked = len(seen)
        for widget, options in offered(at, together):
            fresh = [option for option in options if (widget.key, str(option)) not in seen]
            if fresh:
                widget.set_value(fresh[0])
                seen.add((widget.key, str(fresh[0])))
        if len(seen) == asked:
            return
        look(at)


@pytest.mark.long
def test_every_filter_of_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one session: what it has read and fitted is read and fitted once."""
    monkeypatch.delenv("CURVBENCH_RESULTS", raising=False)
    for run in SAMPLES:
        for page in PAGES:
            walk(session(page, run=run), together=1 if page in BY_METHOD else 4)


@pytest.mark.long
@pytest.mark.parametrize("suite", ["samples", "staleness", "precision", "exact_cost", "training", "resnet"])
def test_every_filter_of_a_run_of_every_kind(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["run", f"suites/{suite}", "--preset", "quick", "--jobs", "1", "--results", str(tmp_path)])
    monkeypatch.setenv("CURVBENCH_RESULTS", str(tmp_path))
    for page in PAGES:
        walk(session(page), together=4)


def test_one_method_on_the_page_of_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the method was not swept, and where it was."""
    monkeypatch.delenv("CURVBENCH_RESULTS", raising=False)
    (mlp,) = (run for run in SAMPLES if run.startswith("mlp/"))
    (sweep,) = (run for run in SAMPLES if run.startswith("sweep/"))
    assert not [part for part in session("cost", run=mlp, probes="adam").subheader if part.value.startswith("Growth")]
    assert [part for part in session("cost", run=sweep).subheader if part.value.startswith("Growth")]
    chosen = session("cost", run=sweep, probes="kfac")
    assert [part for part in chosen.subheader if part.value.startswith("Growth")] and not chosen.exception


ELSEWHERE = {"cost": "cost", "tradeoff": "y", "accuracy": "layers", "cells": "cell", "matrices": "seed"}


@pytest.mark.parametrize("page", PAGES)
def test_a_link_to_what_is_not_there_is_answered(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CURVBENCH_RESULTS", raising=False)
    (mlp,) = (run for run in SAMPLES if run.startswith("mlp/"))
    at = session(page, run="x/y", problem="gone", probes=["gone", "kfac"])
    assert [line.value.partition(":")[0] for line in at.main.warning[:3]] == ["Run", "Problem", "Methods"]
    assert all("is not here" in line.value for line in at.main.warning[:3])
    if page in ELSEWHERE:
        at = session(page, **{"run": mlp, ELSEWHERE[page]: "99"})
        assert "99, which is not here" in at.main.warning[0].value


def trained(seconds: float, epochs: int = 2) -> list[Row]:
    rows = [Row("test.accuracy", 0.1 * epoch, epoch=epoch) for epoch in range(epochs + 1)]
    return [*rows, *(Row("train.seconds", seconds * epoch, epoch=epoch) for epoch in range(1, epochs + 1))]


BAD = [Row(r.metric, scope=r.scope, status=Status.ERROR, reason="not a number") for r in fisher_cell()]
SLOW = failed_cell()
EXACT = [
    Row("problem.samples", 16.0),
    Row("machine.peak", 1e9, "1024"),
    *(Row("time.wall", 0.5, scope) for scope in ("passes", "contraction", "spectrum", "total")),
    *(Row("time.floor", 2.0, scope) for scope in ("passes", "contraction", "total")),
    Row("time.floor.values", 2.0, "total"),
    *(Row(metric, 1e6, "total") for metric in ("flops.counted", "memory.peak", "flops.hutchinson")),
]
DAMPED = [
    *fisher_cell(),
    *(Row(f"damping.{name}", 0.1) for name in ("best", "plateau", "decrease", "quality", "gap_closed")),
    *(Row(f"damping.{name}", 0.2, f"damping={d:.0e}") for name in ("decrease", "quality") for d in (1e-3, 1e-2)),
    Row("damping.quality", 0.1, "damping=1e-03 target=1e-05"),
    Row("error.share", 0.9, "fc1"),
]
AGED = [
    Row(metric, 0.5, f"{scope}, age {age}")
    for age in (0, 2)
    for metric, scope in (("stale.quality", "network"), ("stale.error", "layer blocks"), ("stale.cost", "step"))
]
HELD = [
    Row("problem.samples", 16.0),
    *(Row(f"error.{name}", 0.5, "layer blocks") for name in ("population", "unbiased", "floor")),
    Row("direction.population", 0.5),
]
LEFT: dict[str, list[tuple[Fake, Toy, list[Row]]]] = {
    "one cell": [(Fake(), Toy(), fisher_cell())],
    "failed cells": [(Fake(), Toy(), SLOW), (Fake(damping=0.5), Toy(), SLOW), (Fake(), Toy("b"), SLOW)],
    "trainings": [(Fake(), Toy(), trained(1.0)), (Fake("b"), Toy(), trained(2.0)), (Fake("c"), Toy(), SLOW)],
    "no value": [(Fake(), Toy(), BAD), (Fake(damping=0.5), Toy(), BAD)],
    "no value of one": [(Fake(), Toy(), fisher_cell()), (Fake("b"), Toy(), BAD), (Fake("c"), Toy("b"), fisher_cell())],
    "still going": [(Fake(), Toy(), trained(1.0, 1)), (Fake("b"), Toy(), fisher_cell()[:9]), (Fake("c"), Toy(), SLOW)],
    "metrics of layers": [(Fake(), Toy(), [Row("error.relative", 0.5, "fc1")])],
    "exact cost": [(Fake(), Toy(), EXACT)],
    "dampings": [(Fake(), Toy(), DAMPED), (Fake("b"), Toy(), DAMPED), (Fake("c"), Toy(), SLOW)],
    "ages": [(Fake(), Toy(), AGED), (Fake("b"), Toy(), AGED[:2])],
    "samples": [(Fake(), Toy(), HELD), (Fake(), Toy("b"), HELD)],
    "sizes and a word": [(Fake(does), Toy(), fisher_cell()) for does in ("1", "2", "auto")],
}


QUICK = ("one cell", "failed cells", "trainings", "exact cost", "dampings")


@pytest.mark.parametrize("left", [n if n in QUICK else pytest.param(n, marks=pytest.mark.long) for n in LEFT])
def test_runs_of_which_little_is_left(left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURVBENCH_RESULTS", str(tmp_path))
    for name in ("r1", "r2"):
        write_run(tmp_path, name, LEFT[left], planned=3 if left == "still going" else 0)
    for page in PAGES:
        at = session(page, run="s/r2")
        if left == "still going" or page == "settings":
            walk(at)


def test_a_probe_that_was_not_run_on_the_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURVBENCH_RESULTS", str(tmp_path))
    write_run(tmp_path, "r1", [(Fake(), Toy(), fisher_cell()), (Fake("b"), Toy("b"), fisher_cell())])
    for page in ("overview", "tradeoff", "accuracy", "matrices", "cost", "training"):
        at = session(page, problem="Toy", probes="Fake[does=b]")
        assert "was run on Toy" in at.main.info[0].value
