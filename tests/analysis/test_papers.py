"""The papers' numbers: complete, consistent with the claims drawn from them, and every row is a cell of its suite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from curvbench.analysis import papers
from curvbench.analysis.claims import fits
from curvbench.analysis.papers import COMPARE, Experiment
from curvbench.analysis.verdicts import FEWEST
from curvbench.planning.selection import select
from curvbench.registry import load_suite, parse_probe
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
        assert column.exponent or column.counted or (column.stand_in or column.metric) in METRICS, column
    assert all(math.isfinite(v) for entry in experiment.rows.values() for v in entry.values.values())


@pytest.mark.parametrize("experiment", MEASURED, ids=[e.id for e in MEASURED])
def test_every_row_is_one_contender_of_the_papers_preset(experiment: Experiment) -> None:
    suite = load_suite(SUITES / experiment.id)[1]
    cells = [cell for preset in suite.originals for cell in select(experiment.id, preset, originals=suite.originals)]
    assert not any(cell.surrogate for cell in cells)
    members = {m for claim in experiment.claims for chain in claim.chains for m in chain if isinstance(m, str)}
    members |= {f"{row}.{m.rpartition('.')[2]}" for m in members for row in experiment.rows[m.rpartition(".")[0]].of}
    for name in members:
        entry, column = experiment.rows[name.rpartition(".")[0]], experiment.column(name)
        fitting = {
            (cell.problem, cell.probe)
            for cell in cells
            if entry.probe and fits(cell.probe.label, entry.probe)
            and (not entry.problem or fits(cell.problem.label, entry.problem))
            and column.is_paced == bool(cell.training and cell.training.paced)
        }  # fmt: skip
        # A model of cost is swept over several sizes.
        assert (
            entry.of
            or entry.absent
            or column.counted
            or len(fitting) == 1
            or (fitting and experiment.columns["memory"].exponent)
        ), name


@pytest.mark.parametrize("experiment", MEASURED, ids=[e.id for e in MEASURED])
def test_other_presets_and_settings_are_surrogates(experiment: Experiment) -> None:
    suite = load_suite(SUITES / experiment.id)[1]
    assert suite.originals
    default = select(experiment.id, suite.presets["default"], originals=suite.originals)
    is_model = suite.summary == "growth"  # a table of exponents has no sizes that a smaller one would stand in for
    assert {cell.surrogate for cell in default} == {not is_model}
    for original in suite.originals:
        if original.training:
            changed = select(experiment.id, original, training="lr=0.0123", originals=suite.originals)
            assert all(cell.surrogate for cell in changed)


@pytest.mark.parametrize("experiment", MEASURED, ids=[e.id for e in MEASURED])
def test_what_is_random_is_trained_with_as_many_seeds_as_a_verdict_takes(experiment: Experiment) -> None:
    used = {experiment.column(m) for claim in experiment.claims for m in claim.chain if isinstance(m, str)}
    for preset in load_suite(SUITES / experiment.id)[1].presets.values():
        assert all(column.is_counted for column in used) or len(set(preset.seeds)) >= FEWEST


@pytest.mark.parametrize("experiment", KNOWN.values(), ids=KNOWN)
def test_what_waits_for_a_target_says_how_long_the_paper_trains(experiment: Experiment) -> None:
    used = {experiment.column(m) for claim in experiment.claims for m in claim.chain if isinstance(m, str)}
    assert any(column.is_to_target for column in used) == math.isfinite(experiment.budget)


@pytest.mark.parametrize("experiment", [e for e in MEASURED if math.isfinite(e.budget)], ids=lambda e: str(e.id))
def test_the_papers_preset_trains_as_long_as_the_paper(experiment: Experiment) -> None:
    """In whole epochs: a target that it misses is missed, and not censored; epochs to a level are censored."""
    suite = load_suite(SUITES / experiment.id)[1]
    by_level = any(column.level is not None for column in experiment.columns.values())
    for entry in experiment.rows.values():
        if entry.probe and not by_level:
            training = suite.presets["paper"].training_of(parse_probe(entry.probe))
            assert training is not None and training.epochs == math.ceil(entry.budget or experiment.budget)


# Copied by hand from the papers' texts: by suite, probe and name, of the probe or of its training, or as searched for.
SETTINGS: Mapping[tuple[str, str, str], Any] = {
    ("cwngd_t1_mnist", "cwngd", "lr"): 1.0,
    ("cwngd_t1_mnist", "cwngd", "damping"): 1e-4,
    ("cwngd_t1_mnist", "cwngd", "decay"): (),
    ("cwngd_t1_mnist", "adam", "beta1"): 0.97,
    ("cwngd_t1_mnist", "adam", "lr"): 2.24,
    ("cwngd_t1_mnist", "adam", "epsilon"): 0.183,
    ("cwngd_t1_mnist", "adam", "decay"): (("lr", 0.9994, 1e-4), ("epsilon", 0.9998, 1e-8)),
    ("cwngd_t1_mnist", "kfac", "momentum"): 0.98,
    ("cwngd_t1_mnist", "kfac", "lr"): 0.23,
    ("cwngd_t1_mnist", "kfac", "damping"): 0.289,
    ("cwngd_t1_mnist", "kfac", "decay"): (("lr", 0.9989, 1e-4), ("damping", 0.9997, 1e-6)),
    ("ginger_t1_cifar100", "adam", "beta1"): 0.9,
    ("ginger_t1_cifar100", "adam", "beta2"): 0.99,
    ("ginger_t1_cifar100", "ginger", "decay"): 0.99,
    ("ginger_t1_cifar100", "qng", "decay"): 0.99,
    ("ginger_t2_xsum", "adam", "beta2"): 0.99,
    ("ginger_t2_xsum", "ginger", "decay"): 0.99,
}
SEARCHED = {
    ("lngd_t1_cifar10", "kfac", "damping"): (1e-6, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    ("lngd_t2_imagenet", "kfac", "damping"): (1e-6, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    ("lngd_t3_wmt", "kfac", "damping"): (1e-6, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    ("fngd_t2_time_to_target", "fngd", "alpha"): (0.001, 0.003, 0.005, 0.008, 0.01),
    ("fngd_f7_imagenet", "fngd", "alpha"): (0.001, 0.003, 0.005, 0.008, 0.01),
    ("fngd_f8_multi30k", "fngd", "alpha"): (0.001, 0.003, 0.005, 0.008, 0.01),
}


@pytest.mark.parametrize(("suite", "name", "field"), SETTINGS)
def test_settings_are_the_papers(suite: str, name: str, field: str) -> None:
    loaded = load_suite(SUITES / suite)[1]
    original = loaded.originals[0]
    for probe in (probe for probe in original.probes if probe.name == name):
        training = original.training_of(probe)
        assert training is not None
        holder = probe if field in probe.hyperparameters else training
        assert getattr(holder, field) == SETTINGS[suite, name, field]


@pytest.mark.parametrize(("suite", "name", "field"), SEARCHED)
def test_what_the_paper_searches_for_is_searched_for(suite: str, name: str, field: str) -> None:
    loaded = load_suite(SUITES / suite)[1]
    original = loaded.originals[0]
    assert original.search is not None and original.search.grid[field] == SEARCHED[suite, name, field]
    assert [probe.name for probe in original.probes if field in probe.hyperparameters and probe.name == name] == [name]


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
