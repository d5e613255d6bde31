"""The gate in GitHub Actions: what its summary and its annotations hold, within GitHub's limits."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
from fake_measure import Fake, Toy
from frames import failed_cell, write_run
from regressions import cell

from curvbench import store
from curvbench.analysis.check import Gate
from curvbench.analysis.compare import compare
from curvbench.analysis.export import actions

CHANGES = (1.5, 1.1, 1.01)


def gate(folder: Path, changes: tuple[float, ...] = CHANGES, same: int = 2, any_change: bool = False) -> Gate:
    """A cell per change of the FLOPs of a step, cells that are as they were, and one that only the run has."""

    def cells(factors: tuple[float, ...]) -> list[tuple[Fake, Toy, list]]:
        return [
            (Fake(damping=k + 1), Toy(), cell(("flops.counted", "step", lambda value, f=factor: value * f)))
            for k, factor in enumerate(factors)
        ]

    before = write_run(folder, "before", cells((1.0,) * (len(changes) + same)))
    after = write_run(folder, "after", [*cells(changes + (1.0,) * same), (Fake("new"), Toy(), cell())])
    return Gate(compare(store.load(before), store.load(after)), any_change)


def test_a_summary_has_the_worst_cell_first_and_folds_the_others(tmp_path: Path) -> None:
    text = actions.summary(gate(tmp_path, (1.01, 1.5, 0.5)), "baselines", "results")
    worst, folded = text.split("<details>")
    lines = [line for line in worst.splitlines() if line.startswith("| Fake")]
    assert text.startswith("### curvbench check: 2 of 6 cells fail\n")
    assert [re.search(r"damping=(\d)", line)[1] for line in lines] == ["2", "1"]  # type: ignore[index]
    assert "| 2,000,000 | 3,000,000 | +50.00% worse |" in lines[0] and "baselines" in worst
    assert folded.startswith("<summary>4 cells that do not fail</summary>\n\n| cell ") and "</details>" in folded
    inside = [line for line in folded.splitlines() if line.startswith("| Fake")]
    assert "does=new" in inside[0] and "damping=3" in inside[1] and "-50.00% better" in inside[1], "changes first"
    assert len(lines) + len(inside) == 6, "a line per cell"


def test_a_passing_gate_folds_everything(tmp_path: Path) -> None:
    text = actions.summary(gate(tmp_path, ()), "baselines", "results")
    assert text.startswith("### curvbench check: passed\n") and "\n| Fake" not in text.partition("<details>")[0]


def test_a_summary_keeps_to_its_room_and_counts_what_it_leaves_out(tmp_path: Path) -> None:
    made = gate(tmp_path, tuple(1.01 + k / 10 for k in range(6)), same=4)
    whole = actions.summary(made, "b", "r")
    for room in (900, 1200, 1600):
        text = actions.summary(made, "b", "r", room)
        assert 0 < len(text.encode()) <= room < len(whole.encode())
        shown = sum(line.startswith("| Fake") for line in text.splitlines())
        assert shown + sum(map(int, re.findall(r"^(\d+) more cells have no room", text, re.M))) == 11
        assert text.count("<details>") == text.count("</details>")


def test_without_room_there_is_no_summary(tmp_path: Path) -> None:
    assert actions.summary(gate(tmp_path), "b", "r", 100) == ""


def test_there_is_an_annotation_per_failing_cell_beside_its_file(tmp_path: Path) -> None:
    errors = actions.commands(gate(tmp_path), {("Fake[damping=1]", "Toy", 0): "src/a,b:c%.py"})
    assert errors[0] == (
        "::error file=src/a%2Cb%3Ac%25.py,title=Fake[damping=1] on Toy%2C seed 0::"
        "worse: flops.counted (step) from 2,000,000 to 3,000,000 +50.00%25"
    )
    assert [text.partition(" ")[0] for text in errors] == ["::error"] * 3 + ["::warning"]
    assert "is not in the baseline" in errors[-1]


def test_no_more_annotations_than_github_shows(tmp_path: Path) -> None:
    errors = actions.commands(gate(tmp_path, tuple(1.01 + k / 10 for k in range(12))), {})
    errors = [text for text in errors if text.startswith("::error")]
    assert len(errors) == 10 and errors[-1].endswith("::3 more: the summary of the job has them")


def test_texts_of_users_stay_texts(tmp_path: Path) -> None:
    """A reason with line breaks begins no workflow command, and no Markdown or HTML."""
    reason = "a | b\n::stop-commands::x\n<details> `c`"
    before = write_run(tmp_path, "before", [(Fake(), Toy(), cell()), (Fake("x"), Toy(), cell())])
    after = write_run(tmp_path, "after", [(Fake(), Toy(), failed_cell(reason=reason)), (Fake("x"), Toy(), cell())])
    made = Gate(compare(store.load(before), store.load(after)))
    (line,) = actions.commands(made, {})
    assert "\n" not in line and line.count("::error") == 1
    text = actions.summary(made, "b", "r")
    assert text.count("<details>") == 1 and r"a \| b" in text and "&lt;details&gt;" in text


def test_what_is_not_judged_is_a_warning(tmp_path: Path) -> None:
    rows = store.load(write_run(tmp_path, "r", [(Fake(), Toy(), cell())]))
    other: pd.DataFrame = rows.assign(device_name="another")
    assert actions.commands(Gate(compare(rows, other)), {})[0].startswith("::warning title=curvbench::")
