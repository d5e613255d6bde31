"""Advice on planted problems of which the truth is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from fake_measure import Fake, Toy
from frames import fisher_cell, frame, raw, row, write_run
from planted import failed, planted

import curvbench as cb
from curvbench.analysis import summary, views
from curvbench.analysis.roles import is_method, role
from curvbench.analysis.views import Quantity
from curvbench.cli.app import main
from curvbench.spec import Row

CHEAP, DEAR = (0.25, 0.25, 0.0), (10.0, 40.0, 1.0)  # 1.005 and 2.5 gradients a step, refreshed every 100
FIRST = [
    *planted("eva", [0.5], CHEAP),
    *planted("kfac", [0.25], CHEAP),
    *planted("ekfac", [0.75], DEAR),
    *planted("full", [1.0], CHEAP),
]
SECOND = [
    *planted("eva", [0.25], CHEAP, problem="other"),
    *planted("kfac", [0.26], CHEAP, problem="other"),
    *planted("diag", [0.125], CHEAP, problem="other"),
]


def test_one_problem_is_its_verdict_with_the_evidence() -> None:
    advice = cb.advise(frame(*FIRST))
    assert "eva closes most" in advice.sentences[0] and "at any cost, ekfac closes most" in advice.sentences[0]
    table = advice.evidence.set_index("method")
    assert list(table.index) == ["ekfac", "eva", "kfac"]
    assert table["fits"].to_dict() == {"ekfac": "no", "eva": "yes", "kfac": "yes"}
    assert table["rank"].to_dict() == {"ekfac": "", "eva": "1", "kfac": "2"}
    assert table.loc["ekfac", "gradients"] == 2.5 and table.loc["eva", "gap closed"] == 0.5
    assert advice.overall.empty
    assert "ekfac" in cb.advise(frame(*FIRST), flops=2.5).sentences[0].partition(" closes most")[0]
    assert cb.advise(frame(*FIRST), refresh=1).evidence.set_index("method").loc["ekfac", "gradients"] == 52.0


def test_many_problems_have_ranks_and_wins() -> None:
    advice = cb.advise(frame(*FIRST, *SECOND))
    table = advice.overall.set_index("method")
    assert table["problems"].to_dict() == {"eva": 2, "kfac": 2, "diag": 1}
    assert table["best or tied"].to_dict() == {"eva": 2, "kfac": 1, "diag": 0}, "0.25 and 0.26 are a tie"
    assert table["median rank"].to_dict() == {"eva": 1.5, "kfac": 1.5, "diag": 3.0}, "diag is third on both"
    assert table["median gap"].to_dict() == {"eva": 0.375, "kfac": 0.255, "diag": 0.125}
    assert advice.sentences[0] == (
        "Within 2 gradients a step and 3 times SGD's memory, with statistics refreshed every 100 steps, eva serves "
        "best over 2 problems: its median rank is 1.5 of 3 methods, and it closes 37.5% of the gap between a plain "
        "gradient step and a step with the exact Fisher of every layer in the median of them."
    )
    assert advice.sentences[1] == "Best, or not to be told apart from the best, of 2 problems: eva on 2 and kfac on 1."
    assert len(cb.advise(frame(*FIRST, *SECOND), problem="other").overall) == 0


def test_a_method_that_fits_on_few_problems_is_not_best_overall() -> None:
    rare = planted("unit", [0.9], CHEAP)
    third = [{**r, "problem": "third", "cell_id": f"third/{r['cell_id']}"} for r in SECOND]
    advice = cb.advise(frame(*FIRST, *rare, *SECOND, *third))
    assert advice.overall.iloc[0]["method"] != "unit"
    assert advice.overall.set_index("method").loc["unit", "median rank"] == 4.0


def test_not_enough_measured_and_worse_than_the_gradient() -> None:
    silent = [*planted("kfac", [0.5], None, problem="silent"), failed("eva", "timeout", "late", problem="silent")]
    bad = planted("eva", [-0.5], CHEAP, problem="bad")
    advice = cb.advise(frame(*FIRST, *silent, *bad))
    assert "Not enough measured on silent: no method is known to stay within the budget." in advice.sentences
    assert "On bad, no method within the budget steps better than the plain gradient." in advice.sentences
    assert advice.overall.set_index("method").loc["eva", "best or tied"] == 1, (
        "a step worse than the gradient wins nothing"
    )
    nothing = cb.advise(frame(*silent, *planted("kfac", [None], problem="none")))
    assert nothing.sentences == [
        "Not enough measured on silent and none: no method is known to stay within the budget."
    ]


def test_trainings_are_said_beside() -> None:
    trained = [
        row("kfac", "test.accuracy", 0.5, problem="net", epoch=1),
        row("eva", "test.accuracy", 0.25, problem="net", epoch=1),
    ]
    said = cb.advise(frame(*FIRST, *SECOND, *trained)).sentences
    assert "On net, kfac ends with the best test accuracy: 0.500 with one seed; eva follows with 0.250." in said


def test_rows_of_runs_that_were_joined() -> None:
    twice = pd.concat([frame(*FIRST), frame(*FIRST)])
    assert cb.advise(twice).sentences == cb.advise(frame(*FIRST)).sentences


def test_forms() -> None:
    advice = cb.advise(frame(*FIRST, *SECOND))
    told = json.loads(advice.text("json"))
    assert told["sentences"] == advice.sentences and len(told["evidence"]) == 6 and len(told["overall"]) == 3
    assert told["evidence"][0]["least"] is None
    assert "| eva | 2 | 2 | 1.5 | 0.375 |" in advice.text("markdown")
    assert str(advice).startswith("- Within 2 gradients a step") and "gap closed: 0 is the plain gradient" in str(
        advice
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"flops": 0}, "flops must be above 0"),
        ({"refresh": 0}, "refresh must be a whole number"),
        ({"problem": "tyo"}, "no rows of a problem 'tyo': did you mean toy"),
    ],
)
def test_bad_input_is_one_line(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        cb.advise(frame(*FIRST), **settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="there are no rows"):
        cb.advise(frame(*FIRST).head(0))


def cell(gap: float) -> list[Row]:
    return [*fisher_cell(), raw("direction.gap_closed", gap)]


def typed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["advise", *arguments])
    return (left.value.code, *capsys.readouterr())


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "results", "r1", [(Fake(), Toy(), cell(0.25)), (Fake(damping=0.5), Toy(), cell(0.75))])
    code, out, err = typed(capsys, str(tmp_path / "results"))
    assert code in (0, None) and not err
    assert out.startswith("- Within 2 gradients a step") and "Fake[damping=0.5] closes most" in out
    assert out == typed(capsys, "--results", str(tmp_path / "results"))[1]
    assert out == str(cb.advise(tmp_path / "results")), "the function reads the same folder"
    code, out, _ = typed(capsys, str(tmp_path / "results"), "--flops", "0.5", "--format", "json")
    assert json.loads(out)["sentences"][0].startswith("No method stays within 0.5 gradients a step")
    for arguments in (["nowhere"], [str(tmp_path), "--refresh", "0"], [str(tmp_path / "results"), "--problem", "x"]):
        code, out, err = typed(capsys, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)


def test_roles() -> None:
    assert [
        role(name) for name in ("kfac[damping_rule=pi]", "layer", "kpsvd", "mine[x=1]", "full {parameters=all}")
    ] == [
        "method",
        "reference",
        "bound",
        "method",
        "reference",
    ]
    assert not any(map(is_method, ("eigen", "klkron", "kronsum[rank=3]", "diagpair"))) and is_method("")
    assert is_method("psgd[criterion=QEQ]") and is_method("tnt")


def test_solvers_of_the_fisher_are_ranked_by_their_steps_alone() -> None:
    """Their error is zero; that of a method with the same rows wins."""
    flops, error = Quantity("flops.ratio", "step"), Quantity("error.relative", "network")
    quality = Quantity("direction.quality", "network")
    for name, wins in (("cg[preconditioner=kfac[damping=1.0]]", False), ("spring", False), ("kfac", True)):
        made = [(name, 1.0, 0.0, 0.9), ("eva", 2.0, 0.5, 0.5)]
        rows = frame(
            *(row(n, "flops.ratio", x, "step") for n, x, _, _ in made),
            *(row(n, "error.relative", y) for n, _, y, _ in made),
            *(row(n, "direction.quality", z) for n, _, _, z in made),
        )
        by_error, by_step = (
            points.index[points["front"]].tolist()
            for points in (views.tradeoff(rows, "toy", flops, y).set_index("probe") for y in (error, quality))
        )
        assert by_error == [name if wins else "eva"] and by_step == [name]
        marks, columns = summary.best(summary.table(rows, "toy")), summary.columns(rows, "toy")
        assert marks.loc[name, "error.relative (network)"] == wins != marks.loc["eva", "error.relative (network)"]
        assert marks.loc[name, "direction.quality (network)"]
        ranked = {r["metric"]: r["1st"] for r in views.ranking(summary.table(rows, "toy"), columns).to_dict("records")}
        assert ranked["error.relative"].startswith(name if wins else "eva")
        assert ranked["direction.quality"].startswith(name)


def test_references_stand_on_no_front_and_are_best_in_no_column() -> None:
    flops, quality = Quantity("flops.ratio", "step"), Quantity("direction.quality", "network")
    made = [("kfac", 2.0, 0.5), ("layer", 1.0, 0.9), ("full", 3.0, 1.0), ("eva", 1.5, 0.25), ("diag", 2.5, 0.25)]
    rows = frame(
        *(r for name, x, y in made for r in (row(name, "flops.ratio", x, "step"), row(name, "direction.quality", y)))
    )
    points = views.tradeoff(rows, "toy", flops, quality).set_index("probe")
    assert points.index[points["front"]].tolist() == ["kfac", "eva"]
    assert math.isclose(points.loc["full", "x"], 3.0), "a reference is drawn all the same"
    marks = summary.best(summary.table(rows, "toy"))
    assert marks["direction.quality (network)"].to_dict() == dict.fromkeys(("layer", "full", "eva", "diag"), False) | {
        "kfac": True
    }
    (first, *_) = views.ranking(summary.table(rows, "toy"), summary.columns(rows, "toy")).to_dict("records")
    assert first["1st"] == "kfac  0.500" and not any("full" in str(value) for value in first.values())
