"""The papers' numbers: complete, consistent with the claims drawn from them, and every row is a cell of its suite."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from curvbench.analysis import papers
from curvbench.analysis.claims import _fits
from curvbench.analysis.papers import COMPARE, Experiment
from curvbench.registry import load_suite, parse_probe
from curvbench.selection import select
from curvbench.spec import METRICS

SUITES = Path(__file__).parents[2] / "suites" / "papers"
KNOWN = {experiment.id: experiment for experiment in papers.experiments()}
MEASURED = [e for e in KNOWN.values() if not all(claim.why for claim in e.claims)]

# Copied by hand from the papers' tables, apart from the files.
PRINTED = {
    ("lngd_t1_cifar10", "LNGD.total_s"): 189.69,
    ("lngd_t1_cifar10", "TKFAC.epochs"): 39,
    ("lngd_t2_imagenet", "KFAC.s_per_epoch"): 739.93,
    ("lngd_t3_wmt", "ADAM.ksteps"): 25,
    ("lngd_t5_ablation", "LNGD_sample.total_h"): 7.06,
    ("fngd_t2_time_to_target", "Eva.total_s"): 1967,
    ("fngd_t3_epoch_cost", "resnet34_cifar100.KFAC.pace"): 2.22,
    ("fngd_t4_ablation", "resnet18.no_damping.acc"): 75.51,
    ("fngd_t5_damping", "KFAC_0.003.acc"): 76.71,
    ("cwngd_t1_mnist", "KFAC.epochs_to_convergence"): 38,
    ("ginger_t1_cifar100", "resnet50.QNG8.acc"): 75.12,
    ("ginger_t2_xsum", "full.GINGER32.flops"): 1.633e11,
    ("ginger_t3_t4_sensitivity", "alpha0.9_tau4.train_loss_e6"): 6.03,
}
BLENDED = {
    ("fngd_t5_damping", "FNGD_mean.acc"): 77.22,
    ("fngd_t5_damping", "KFAC_best.acc"): 77.22,
    ("ginger_t1_cifar100", "resnet18.GINGER.acc"): 73.17,
    ("ginger_t1_cifar100", "resnet18.GINGER.train_loss_e6"): 6.41,
    ("ginger_t3_t4_sensitivity", "spread.acc"): 0.78,
}


def test_every_table_and_figure_is_there_and_has_a_suite_if_it_is_measured() -> None:
    assert len(KNOWN) == 21
    assert {e.id for e in MEASURED} == {file.stem for file in SUITES.glob("*.py")}


@pytest.mark.parametrize(("name", "path"), PRINTED)
def test_numbers_are_those_printed(name: str, path: str) -> None:
    assert KNOWN[name].reported(path) == PRINTED[name, path]


@pytest.mark.parametrize(("name", "path"), BLENDED)
def test_groups_blend_their_rows(name: str, path: str) -> None:
    value = KNOWN[name].reported(path)
    assert value is not None and abs(value - BLENDED[name, path]) <= 0.005


@pytest.mark.parametrize("experiment", KNOWN.values(), ids=KNOWN)
def test_claims_hold_on_the_papers_own_numbers_as_they_say(experiment: Experiment) -> None:
    for claim in experiment.claims:
        numbers = [experiment.reported(member) for member in claim.chain]
        if claim.op == "~" or claim.reading or claim.why:
            continue
        pairs = [(a, b) for i, j in claim.pairs if (a := numbers[i]) is not None and (b := numbers[j]) is not None]
        assert pairs, f"{claim.text}: the paper has no number"
        assert all(COMPARE[claim.op](a, b) for a, b in pairs) is claim.holds_on_reported, claim.text


@pytest.mark.parametrize("experiment", KNOWN.values(), ids=KNOWN)
def test_rows_name_probes_and_columns_name_metrics(experiment: Experiment) -> None:
    for entry in experiment.rows.values():
        if entry.probe:
            parse_probe(entry.probe)
    used = {experiment.column(m) for claim in experiment.claims for m in claim.chain if isinstance(m, str)}
    for column in used:
        assert column.exponent or (column.stand_in or column.metric) in METRICS, column
    assert all(math.isfinite(v) for entry in experiment.rows.values() for v in entry.values.values())


@pytest.mark.parametrize("experiment", MEASURED, ids=[e.id for e in MEASURED])
def test_every_row_is_one_contender_of_the_papers_preset(experiment: Experiment) -> None:
    suite = load_suite(SUITES / experiment.id)[1]
    original = suite.presets[suite.original]
    cells = select(experiment.id, original, original=original)
    assert not any(cell.surrogate for cell in cells)
    names = {m.rpartition(".")[0] for claim in experiment.claims for m in claim.chain if isinstance(m, str)}
    names |= {row for name in names for row in experiment.rows[name].of}
    for name in names:
        entry = experiment.rows[name]
        fitting = {
            (cell.problem, cell.probe)
            for cell in cells
            if entry.probe and _fits(cell.probe.label, entry.probe)
            and (not entry.problem or _fits(cell.problem.label, entry.problem))
        }  # fmt: skip
        # A model of cost is swept over several sizes.
        assert entry.of or entry.absent or len(fitting) == 1 or (fitting and experiment.columns["memory"].exponent), (
            name
        )


@pytest.mark.parametrize("experiment", MEASURED, ids=[e.id for e in MEASURED])
def test_other_presets_and_settings_are_surrogates(experiment: Experiment) -> None:
    suite = load_suite(SUITES / experiment.id)[1]
    original = suite.presets[suite.original]
    assert suite.original == "paper"
    default = select(experiment.id, suite.presets["default"], original=original)
    is_model = suite.summary == "growth"  # a table of exponents has no sizes that a smaller one would stand in for
    assert {cell.surrogate for cell in default} == {not is_model}
    if original.training:
        changed = select(experiment.id, original, training="epochs=2", original=original)
        assert all(cell.surrogate for cell in changed)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[x", "Expected ']'"),
        ('paper = "p"\n[x]\nsourc = "s"', "x: unknown key 'sourc': did you mean source"),
        ('paper = "p"\n[x.columns]\na = {unit = "s", take = "mean"}', "x.columns.a: take is one of last, best"),
        ('paper = "p"\n[x.rows]\na = {}', "x.rows.a: a row has one of probe, of and absent"),
        ('paper = "p"\n[[x.claims]]\ntext = "t"', "x.claims: a claim compares two members at least"),
    ],
)
def test_a_damaged_file_is_named_with_the_key(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ValueError, match=r"p\.toml") as caught:
        papers.experiments(tmp_path)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_claim_names_rows_and_columns_that_are_there(tmp_path: Path) -> None:
    head = 'paper = "p"\n[x]\nsource = "s"\ncaption = "c"\nsetting = "t"\n[x.columns]\nacc = {unit = "%"}\n'
    claim = '[[x.claims]]\ntext = "t"\nop = "<"\nchain = ["KFACC.acc", 1.0]\n'
    (tmp_path / "p.toml").write_text(f'{head}[x.rows]\nKFAC = {{probe = "kfac"}}\n{claim}')
    with pytest.raises(ValueError, match="no row 'KFACC': did you mean KFAC"):
        papers.experiments(tmp_path)


def test_no_folder_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="curvbench's checkout"):
        papers.experiments(tmp_path / "none")
