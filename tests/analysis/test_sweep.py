from __future__ import annotations

import io
import math
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from curvbench.analysis import frames, sweep
from curvbench.report import terminal

TOY = "toy[epochs=2]"
ERROR = "error.relative"


def row(probe: str, args: str, value: float | None, **other: Any) -> dict[str, Any]:
    common = {"problem": "toy", "problem_args": "epochs=2", "seed": 0, "status": "ok", "scope": "network"}
    return common | {"probe": probe, "probe_args": args, "metric": ERROR, "value": value} | other


ROWS = pd.DataFrame(
    [
        row("eigen", "rank=4", 0.25),
        row("eigen", "", 0.125),
        row("ginger", "rank=4,updates=10,bc=True", 0.5),
        row("ginger", "rank=4,updates=2,bc=True", 0.9),
        row("ginger", "rank=4,updates=2,bc=True", 0.7, seed=1),
        row("ginger", "rank=4,updates=2,bc=True", 0.1, scope="layer blocks"),
        row("ginger", "rank=4,updates=2,bc=True", 0.2, metric="error.spectral"),
        row("ginger", "batch_size=8", 0.6),
        row("mine", "updates=3,tag=a", None, status="timeout"),
        row("mine", "updates=2,tag=a", 0.3),
        row("mine", "", 0.4, problem="other"),
    ]
)


def test_hyperparameters_are_columns_defaults_included() -> None:
    tidy = sweep.tidy(ROWS)
    assert len(tidy) == len(ROWS) and list(tidy["value"].dropna()) == list(ROWS["value"].dropna())
    assert tidy["probe.rank"].tolist()[:8] == [4, 16, 4, 4, 4, 4, 4, 16]
    assert tidy["probe.updates"].tolist()[2:10] == [10, 2, 2, 2, 2, 32, 3, 2]
    assert tidy["probe.decay"].tolist()[2:8] == [0.99] * 6
    assert tidy["probe.updates"][:2].isna().all() and tidy["probe.decay"][8:].isna().all()
    assert tidy["probe.bc"].tolist()[6:8] == ["True", "False"]
    assert tidy["probe.batch_size"].tolist()[7] == 8 and math.isnan(tidy["probe.batch_size"][2])
    assert tidy["probe.tag"].tolist()[8] == "a" and tidy["seed"].tolist()[4] == 1
    assert tidy["curve"].tolist()[:3] == ["eigen[rank=4]", "eigen", "ginger[rank=4,bc=True]"]


def test_one_line_per_curve_and_one_column_per_number_of_updates() -> None:
    found = sweep.table(ROWS, TOY, ERROR)
    assert list(found.columns) == ["any", 2, 10, 32]
    assert list(found.index) == [
        "eigen[rank=4]",
        "eigen",
        "ginger[rank=4,bc=True]",
        "ginger[batch_size=8]",
        "mine[tag=a]",
    ]
    assert found.loc["ginger[rank=4,bc=True]"].tolist()[1:3] == [0.8, 0.5]  # the median of two seeds
    assert found.loc["eigen[rank=4]", "any"] == 0.25 and found.loc["eigen[rank=4]"].count() == 1
    assert found.loc["mine[tag=a]"].dropna().to_dict() == {2: 0.3}


def test_problems_with_several_numbers_of_updates() -> None:
    assert sweep.swept(ROWS) == [TOY]
    assert sweep.swept(ROWS[~ROWS["probe"].isin(["ginger", "mine"])]) == []
    assert sweep.swept(ROWS[:0]) == []


def test_the_last_of_every_curve_whatever_became_of_it() -> None:
    kept = sweep.last(ROWS)
    assert list(frames.labels(kept, "probe").unique()) == [
        "eigen[rank=4]",
        "eigen",
        "ginger[rank=4,updates=10,bc=True]",
        "ginger[batch_size=8]",
        "mine[updates=3,tag=a]",
        "mine",
    ]
    plain = ROWS[ROWS["probe"] == "eigen"]
    assert sweep.last(plain).equals(plain)


@pytest.mark.parametrize("width", [40, 80, 1000])
def test_the_table_is_shown_whole(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    terminal.show(console, terminal.sweep_table(ROWS, TOY, ERROR))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for number in ("0.250", "0.125", "0.800", "0.500", "0.600", "0.300", "any", "32"):
        assert number in text
    assert "…" not in text
    assert width < 80 or "eigen[rank=4]" in text


def test_the_title_says_what_is_shown() -> None:
    assert sweep.title(TOY, ERROR).startswith(f"{TOY}, {ERROR} of the network against updates: |F^ - F|")
