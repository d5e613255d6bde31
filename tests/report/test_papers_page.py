"""The page of the papers' claims, from rows made by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import pytest
from frames import frame, row

from curvbench.analysis.claims import Judged, judge
from curvbench.analysis.papers import Claim, Column, Entry, Experiment
from curvbench.report.papers import Finding, Unfounded, page, told

COLUMNS = {"acc": Column("%", "test.accuracy", take="best", scale=100)}
ROWS = {"K": Entry("kfac", values={"acc": 90.0}), "A": Entry("adam", values={"acc": 80.0})}
CLAIMS = [Claim("K-FAC leads", ["K.acc", "A.acc"], ">"), Claim("nobody can say", why="it is a picture")]
KNOWN = Experiment(
    "x", "Paper <1>", "Table 1", "c", "a net on data", COLUMNS, ROWS, CLAIMS, remarks=["no rates"], hardware="a GPU"
)


def rows(values: Mapping[str, float], method: str = "lr=0.1") -> pd.DataFrame:
    machine = {"device_name": "a cpu", "torch_version": "2.13", "git_sha": "0123456789"}
    return frame(
        *(
            row(name, "test.accuracy", value, suite="x", seed=seed, method=method, cell_id=f"{name}{seed}{method}")
            | machine
            for name, value in values.items()
            for seed in range(3)
        )
    )


def judged(values: Mapping[str, float]) -> list[Judged]:
    return judge(rows(values), [KNOWN])


def test_a_claim_is_a_line_with_its_numbers_below_its_setting() -> None:
    cells = pd.concat([rows({"kfac": 0.9, "adam": 0.8}), rows({"kfac": 0.3, "adam": 0.4}, "surrogate, lr=0.1")])
    found = [Finding("K-FAC has {x:K.acc} %.", {"x": {"K-FAC leads": "holds"}})]
    text = page(judge(cells, [KNOWN]), cells, found, {"x": "curvbench run papers/x"})
    assert "- K-FAC has 90.0 %.\n" in text
    assert "| Paper &lt;1&gt; | 2 | 1 |  |  |  | 1 |  |" in text and "| all | 2 | 1 |  |  |  | 1 |  |" in text
    assert "- here: a cpu, threads 1, torch 2.13, commit 0123456; hardware differs: the paper used a GPU\n" in text
    assert "- no rates\n- again: `curvbench run papers/x`\n" in text
    own, folded = text.split("<details>")
    assert "| K-FAC leads | **holds** | K 90 &gt; A 80 | K 90.0, A 80.0; K 90.0 &gt; A 80.0;" in own
    assert "| nobody can say | **not measured** |  | it is a picture |" in own
    assert "| K-FAC leads | **refuted** |" in folded.split("</details>")[0]


def test_a_sentence_to_take_home_stands_on_the_verdicts_that_it_names() -> None:
    finding = Finding("K-FAC has {x:K.acc} %, Adam {x:A.acc} %.", {"x": {"K-FAC leads": "holds"}})
    assert told(finding, judged({"kfac": 0.9, "adam": 0.8})) == "K-FAC has 90.0 %, Adam 80.0 %."
    with pytest.raises(Unfounded, match="x: 'K-FAC leads' is refuted, expected holds"):
        told(finding, judged({"kfac": 0.7, "adam": 0.8}))
    with pytest.raises(Unfounded, match=r"x:S\.acc was not measured"):
        told(finding._replace(text="{x:S.acc}"), judged({"kfac": 0.9, "adam": 0.8}))
    with pytest.raises(Unfounded, match="'K-FAC wins' is unknown"):
        told(finding._replace(stands_on={"x": {"K-FAC wins": "holds"}}), [])
