"""Tuning: every setting is a trial that never sees the test part, the best of them trains."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from frames import frame, row

from curvbench import probe, problem, store
from curvbench.cli.app import main
from curvbench.planning import tuning
from curvbench.planning.selection import select
from curvbench.planning.tuning import Choice
from curvbench.spec import Preset, Search, Training

GRID = Search({"lr": (0.1, 0.01, 1.0), "damping": (0.3, 0.03)}, seeds=(7, 8), epochs=2)
PRESET = Preset(
    [problem("mlp", depth=1)],
    [probe("sgdm"), probe("kfac")],
    seeds=(0, 1, 2),
    training=Training(epochs=5, lr=0.5, target=0.9, measure_at=(0,)),
    tuned={"kfac": {"momentum": 0.5}},
    search=GRID,
)


def test_trials_are_the_grid_for_each_probe_and_seed_with_a_part_set_apart() -> None:
    cells = select("s", PRESET)
    tried = tuning.next_trials(cells, GRID)
    assert len(tried) == 3 * 2 + 6 * 2  # sgdm has no damping
    for trial, (cell, setting) in tried.items():
        assert trial.training is not None and cell in cells
        assert (trial.training.valid, trial.training.target, trial.training.epochs) == (0.2, None, 2)
        assert trial.training.measure_at == () and trial.suite == "s.tuning" and trial.seed in (7, 8)
        assert trial.training.lr == setting["lr"]
        assert trial.training.momentum == (0.5 if trial.probe.name == "kfac" else 0.9)
        assert trial.probe.hyperparameters.get("damping") == setting.get("damping")


def outcome(**scores: float | None) -> pd.DataFrame:
    """The rows of trials: two epochs whose first looks best, one that diverged where the score is None."""
    rows = []
    for name, score in scores.items():
        rows += [row("p", "valid.accuracy", 1.0, epoch=1, cell_id=name), row("p", "train.seconds", 2.0, cell_id=name)]
        if score is None:
            rows.append(row("p", "", None, cell_id=name, status="diverged", reason="the loss is nan"))
        else:
            rows.append(row("p", "valid.accuracy", score, epoch=2, cell_id=name))
    return frame(*rows)


def test_a_search_without_data_says_what_the_trials_said() -> None:
    rows = frame(*(row("p", "", None, cell_id=k, status="skipped", reason="mnist is absent") for k in "abcdef"))
    with pytest.raises(ValueError, match=r"no trial of sgdm on mlp\[depth=1\] succeeded: mnist is absent"):
        choice(Search({"lr": (0.1, 1.0)}), rows)
    with pytest.raises(ValueError, match="they were not run"):
        choice(Search({"lr": (0.1, 1.0)}), rows[:0])


def choice(search: Search, rows: pd.DataFrame) -> Choice:
    cell = select("s", PRESET)[0]
    settings = {"a": 0.1, "b": 0.1, "c": 1.0, "d": 1.0, "e": 10.0, "f": 10.0}
    tried = {trial: (cell, {"lr": lr}) for trial, lr in settings.items()}
    (found,) = tuning.choose(tried, search, rows)
    return found


def test_the_median_over_seeds_after_the_last_epoch_chooses() -> None:
    """The best single trial, f, is of a setting that fails on average."""
    search = Search({"lr": (0.1, 1.0, 10.0)})
    found = choice(search, outcome(a=0.5, b=0.6, c=0.7, d=0.8, e=0.1, f=0.95))
    assert (found.setting, found.trials, found.failed, found.seconds) == ({"lr": 1.0}, 6, 0, 12.0)
    assert abs(found.score - 0.75) <= 1e-12 and not found.at_edge


def test_a_setting_of_which_a_seed_fails_is_not_chosen() -> None:
    search = Search({"lr": (0.1, 1.0, 10.0)})
    found = choice(search, outcome(a=0.5, b=0.6, c=0.9, d=None, e=0.1, f=0.2))
    assert (found.setting, found.failed, found.at_edge) == ({"lr": 0.1}, 1, ("lr",))
    assert "1 failed; lr at the edge of the grid" in str(found)


def test_the_lowest_loss_is_the_best() -> None:
    rows = outcome(a=0.5, b=0.6, c=0.9, d=0.9, e=0.1, f=0.2).replace("valid.accuracy", "valid.loss")
    assert choice(Search({"lr": (0.1, 1.0, 10.0)}, metric="valid.loss"), rows).setting == {"lr": 10.0}


def test_where_every_setting_lost_a_seed_there_is_nothing_to_choose() -> None:
    with pytest.raises(ValueError, match=r"every setting of sgdm on mlp.* failed with one of its seeds"):
        choice(Search({"lr": (0.1, 1.0)}), outcome(a=None, b=1.0, c=None, d=1.0, e=None, f=1.0))


def test_where_every_trial_fails_there_is_nothing_to_choose() -> None:
    with pytest.raises(ValueError, match=r"no trial of sgdm on mlp.* succeeded: the loss is nan"):
        choice(Search({"lr": (0.1, 1.0)}), outcome(a=None, b=None, c=None, d=None, e=None, f=None))


def test_the_chosen_setting_trains_on_all_data_with_every_seed() -> None:
    cells = select("s", PRESET)
    first = {cell.probe.name: cell for cell in cells if cell.seed == 0}
    made = [
        Choice(first["sgdm"], {"lr": 0.1}, 1.0, 1, 0, 0.0, ()),
        Choice(first["kfac"], {"lr": 0.01, "damping": 0.3}, 1.0, 1, 0, 0.0, ()),
    ]
    found = tuning.settled(cells, made)
    assert [(c.seed, c.suite) for c in found] == [(c.seed, "s") for c in cells]
    for cell in found:
        assert cell.training is not None
        assert (cell.training.valid, cell.training.target, cell.training.epochs) == (0.0, 0.9, 5)
        assert cell.training.lr == {"sgdm": 0.1, "kfac": 0.01}[cell.probe.name]
    assert {c.probe.label for c in found} == {"sgdm", "kfac[damping=0.3]"}


@pytest.mark.parametrize(
    "arguments",
    [
        {"grid": {}},
        {"grid": {"lr": ()}},
        {"grid": {"lr": (1.0,)}, "trials": 0},
        {"grid": {"lr": (1.0,)}, "valid": 1.0},
        {"grid": {"lr": (0.1, 1.0)}, "sampler": "tpe"},
        {"grid": {"lr": (0.1, 1.0)}, "sampler": "cmaes"},
    ],
)
def test_a_search_refuses_what_it_cannot_do(arguments: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match="search"):
        Search(**arguments)


def test_a_preset_that_searches_trains_from_the_beginning() -> None:
    with pytest.raises(ValueError, match="a preset that searches"):
        Preset([problem("mlp")], [probe("sgdm")], search=GRID)
    with pytest.raises(ValueError, match="a preset that searches"):
        Preset([problem("mlp", epochs=1)], [probe("sgdm")], training=Training(1, 0.1), search=GRID)


SUITE = """
from curvbench import Preset, Search, Suite, Training, probe, problem

SUITE = Suite("two stages", {
    "default": Preset(
        [problem("mlp", depth=1)], [probe("sgdm")], seeds=(0, 1),
        training=Training(epochs=2, lr=0.1), search=Search({"lr": (1e-5, 0.1, 1e5)}, epochs=1),
    ),
})
"""


def test_run_tries_chooses_and_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of three rates one hardly moves and one diverges; a second call finds everything there."""
    (tmp_path / "two.py").write_text(SUITE)
    results = tmp_path / "results"
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main(["run", str(tmp_path / "two"), "--engine", "inline", "--results", str(results)])
        out = capsys.readouterr().out
        assert ended.value.code == 0
        assert "chosen by valid.accuracy:\nsgdm on mlp[depth=1]: lr=0.1 (" in out
    assert "nothing to do: all 3 cells" in out and "nothing to do: all 2 cells" in out
    trials, final = store.load(results / "two.tuning"), store.load(results / "two")
    assert trials["cell_id"].nunique() == 3 and (trials["metric"] == "valid.accuracy").any()
    assert final["cell_id"].nunique() == 2 and not (final["metric"] == "valid.accuracy").any()


def test_failed_trials_have_one_command_which_is_the_run_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That of a single trial would choose among it alone."""
    (tmp_path / "two.py").write_text(SUITE.replace('"sgdm"', '"kfac", damping=0.0'))
    with pytest.raises(SystemExit):
        main(["run", str(tmp_path / "two"), "--engine", "inline", "--results", str(tmp_path / "results")])
    lines = capsys.readouterr().out.splitlines()
    start = "all of these again: "
    again = [line.removeprefix(start) for line in lines if line.startswith(start)]
    command = f"curvbench run {tmp_path / 'two'} --engine inline --results {tmp_path / 'results'} --rerun-failed"
    assert lines.count("    kfac[damping=0.0] on mlp[depth=1], seed 0, 3 cells") == 1
    assert again == [command]


@pytest.mark.parametrize("extra", ["", pytest.param("--force", marks=pytest.mark.long)])
def test_rounds_learn_from_each_other_and_go_on_where_they_were_stopped(
    extra: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same trials in one run, whether it was stopped after its first round or not."""
    pytest.importorskip("optuna", reason="the extra `tune`")
    learning = SUITE.replace("(1e-5, 0.1, 1e5)}", '(1e-4, 1.0)}, trials=6, sampler="tpe"')
    for folder, trials in (("a", 4), ("b", 6)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "two.py").write_text(learning.replace("trials=6", f"trials={trials}"))
    told = [_run(tmp_path / "a", capsys, tmp_path / "stopped")]
    told.append(_run(tmp_path / "b", capsys, tmp_path / "stopped", *filter(None, [extra])))
    told.append(_run(tmp_path / "b", capsys, tmp_path / "straight"))
    assert [int(re.findall(r"(\d+) trials", line)[0]) for line in told] == [4, 6, 6]
    found = {name: store.load(tmp_path / name / "two.tuning") for name in ("stopped", "straight")}
    rates = {name: set(rows["method"].str.extract(r"lr=([^,]+)")[0]) for name, rows in found.items()}
    assert rates["stopped"] == rates["straight"] and len(rates["straight"]) == 6
    assert found["straight"]["run_id"].nunique() == 1
    assert len(store.runs(tmp_path / "stopped" / "two.tuning")) == 2  # its cells had loaded the file, which has changed


def _run(folder: Path, capsys: pytest.CaptureFixture[str], results: Path, *more: str) -> str:
    """The line that says what was chosen."""
    with pytest.raises(SystemExit) as ended:
        main(["run", str(folder / "two"), "--engine", "inline", "--results", str(results), *more])
    out = capsys.readouterr().out
    assert ended.value.code == 0, out
    return next(line for line in out.splitlines() if line.startswith("sgdm on mlp[depth=1]: lr="))


def test_a_search_that_was_not_run_to_its_end_tries_nothing_else() -> None:
    """A trial that has no row yet must not count as one that failed."""
    cells = select("s", PRESET)
    search = Search({"lr": (0.1, 1.0)}, trials=9, sampler="tpe")
    tried = {"a": (cells[0], {"lr": 0.3}), "b": (cells[0], {"lr": 0.5})}
    assert tuning.next_trials(cells[:1], search, tried, outcome(a=0.5)) == {}


def test_without_the_extra_a_search_that_learns_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    (tmp_path / "two.py").write_text(SUITE.replace("(1e-5, 0.1, 1e5)}", '(1e-4, 1.0)}, trials=6, sampler="tpe"'))
    with pytest.raises(SystemExit) as ended:
        main(["run", str(tmp_path / "two"), "--results", str(tmp_path / "results")])
    said = "curvbench: a search with sampler='tpe' needs optuna: pip install 'curvbench[tune]'\n"
    assert (ended.value.code, capsys.readouterr().err) == (2, said)


def test_a_folder_of_suites_is_run_one_after_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(SUITE)
    with pytest.raises(SystemExit) as ended:
        main(["run", str(tmp_path), "--dry-run", "--results", str(tmp_path / "results")])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert out.count("3 of 3 cells would be run") == 2
    assert out.count("2 cells would then be trained with the settings that these choose") == 2
