from __future__ import annotations

import csv
import io
import json

import pandas as pd

from curvbench.analysis import tables

FRAME = pd.DataFrame({"name": ["a|b", "<c>"], "value": [1.5, float("nan")], "raw": [[1.0, float("inf")], []]})


def test_json_holds_no_number_that_json_does_not_know() -> None:
    assert json.loads(tables.text(FRAME, "json")) == [
        {"name": "a|b", "value": 1.5, "raw": [1.0, "inf"]},
        {"name": "<c>", "value": None, "raw": []},
    ]


def test_every_line_of_markdown_has_the_same_cells() -> None:
    lines = tables.text(FRAME, "markdown").splitlines()
    assert len(lines) == 4
    assert {line.replace(r"\|", "").count("|") for line in lines} == {4}
    assert "&lt;c&gt;" in lines[3]


def test_csv_and_aligned() -> None:
    assert [row["name"] for row in csv.DictReader(io.StringIO(tables.text(FRAME, "csv")))] == ["a|b", "<c>"]
    head, first, _ = tables.text(FRAME[["name", "value"]], "table").splitlines()
    assert head == "name  value" and first == "a|b     1.5"


def test_markdown_says_every_sign_and_puts_numbers_to_the_right() -> None:
    frame = pd.DataFrame({"probe": ["kfac[a=1]`_*\n"], "n": [2]})
    assert tables.text(frame, "markdown").splitlines()[1:] == ["| --- | ---: |", r"| kfac\[a=1\]\`\_\* | 2 |"]
