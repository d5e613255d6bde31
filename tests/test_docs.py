"""The pages under docs/: what probes say of themselves is whole and agrees with their code; nothing is out of date."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import get_args

import pandas as pd
import pytest

from curvbench import registry
from curvbench.problems.layers import Network
from curvbench.registry.errata import ERRATA
from curvbench.spec import Component, Training

ROOT = Path(__file__).parent.parent
NAMES = sorted(registry.probes())
DESCRIBED = {name: registry.describe(name, kind) for name, kind in registry.probes().items()}
NO_PUBLISHED_COST = {
    "diagpair",
    "eigen",
    "klkron",
    "kpsvd",
    "kronsum",
}  # bounds for their families, which no paper prices
COSTS = {"statistics", "invert", "precondition", "memory"}


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts" / "make_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_methods_is_what_the_code_renders(pages: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    pages.main(["methods"])
    again = "run `python scripts/make_docs.py methods > docs/methods.md`"
    assert capsys.readouterr().out == (ROOT / "docs" / "methods.md").read_text(), again


@pytest.mark.parametrize("name", NAMES)
def test_every_section_is_whole(name: str) -> None:
    method = DESCRIBED[name]
    assert method["represents"] != method["description"] and method["damping"]
    assert method["source"] or name == "identity"
    assert set(method["cost"]) == (set() if name in NO_PUBLISHED_COST else COSTS)
    assert all(method["meanings"].values()), [key for key, text in method["meanings"].items() if not text]
    fields = registry.probe(name).hyperparameters
    assert fields == method["hyperparameters"] and set(method["meanings"]) == set(fields) == set(method["allowed"])
    if "fisher_type" in fields:
        assert method["fisher"]["default"] == fields["fisher_type"] in method["fisher"]["types"]


LEANS_ON_ITS_CONTEXT = re.compile(r"(of|that|those|the other|the same|these|such|which|how many)\b", re.IGNORECASE)


@pytest.mark.parametrize("kind", [*registry.probes().values(), *registry.problems().values(), Training])
def test_every_meaning_stands_alone_in_a_table(kind: type[Component]) -> None:
    meanings = registry.describe(kind.__name__, kind)["meanings"]
    assert not [name for name, meaning in meanings.items() if not meaning or LEANS_ON_ITS_CONTEXT.match(meaning)]


def test_every_hyperparameter_of_a_problem_has_a_meaning() -> None:
    for name, kind in registry.problems().items():
        assert all(registry.describe(name, kind)["meanings"].values()), name


@pytest.mark.parametrize("name", [name for name in NAMES if DESCRIBED[name]["fisher"]["types"]])
def test_the_types_that_are_named_are_those_that_are_taken(name: str) -> None:
    kinds, key = DESCRIBED[name]["fisher"]["types"], "fisher_type"
    if key not in DESCRIBED[name]["hyperparameters"]:
        pytest.skip("fixed, or not chosen by this name")
    for kind in ("type-2", "mc", "empirical", "forward-only", "lg", "lg_mc"):
        if kind in kinds:
            assert registry.probe(name, fisher_type=kind).hyperparameters[key] == kind
        else:
            with pytest.raises(ValueError, match=key):
                registry.probe(name, fisher_type=kind)


# --- cost --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_method_publishes_a_cost_or_is_known_to_have_none(name: str) -> None:
    assert (DESCRIBED[name]["cost"] == {}) == (name in NO_PUBLISHED_COST)


# --- errata ------------------------------------------------------------------------------------------------


def test_every_erratum_is_told_by_a_probe_and_every_id_is_known() -> None:
    told = [erratum["id"] for method in DESCRIBED.values() for erratum in method["errata"]]
    assert "" not in told, "an id that nothing explains"
    assert set(told) == set(ERRATA)
    counts = {"G": 12, "Q": 6, "L": 17, "F": 15, "C": 12}
    assert list(ERRATA) == [f"E-{paper}{k}" for paper, count in counts.items() for k in range(1, count + 1)]
    assert {method["name"] for method in DESCRIBED.values() if "E-L13" in [e["id"] for e in method["errata"]]} == {
        "ekfac",
        "lngd",
    }


# --- coverage ----------------------------------------------------------------------------------------------

COVERAGE = (ROOT / "docs" / "coverage.md").read_text()


def test_the_page_of_coverage_is_that_of_the_suite() -> None:
    _, suite = registry.load_suite(ROOT / "suites" / "coverage")
    labels = sorted(probe.label for probe in suite.presets["default"].probes)
    head, _, *rows = [line for line in COVERAGE.splitlines() if line.startswith("|")][: len(labels) + 2]
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["probe", *get_args(Network)]
    assert [row.split("`")[1] for row in rows] == labels, "run suites/coverage and make the page again"
    assert {cell.strip() for row in rows for cell in row.strip("|").split("|")[1:]} == {"exact", "unsupported"}


def test_the_reasons_on_the_page_are_those_that_are_given(pages: ModuleType) -> None:
    refused = pages.refusals()
    assert refused in COVERAGE
    for model in ("BatchNorm in training mode", "dropout that is always on", "without a shape", "all frozen", "NaN"):
        assert model in refused


def test_a_run_that_is_none_of_coverage_is_one_line(
    pages: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for frame, words in ((None, "no results at"), (pd.DataFrame({"problem": ["mlp"], "problem_args": [""]}), "on mlp")):
        with pytest.raises((SystemExit, ValueError)) as caught:
            pages.main(["coverage", str(tmp_path / "none")]) if frame is None else pages.coverage(frame)
        assert words in (capsys.readouterr().err if frame is None else str(caught.value))


def test_a_page_of_coverage_is_made_of_a_run(pages: ModuleType) -> None:
    """Failed and unsupported cells have a word and a reason."""
    known = {"probe_args": "", "problem": "layers", "seed": 0, "scope": "network", "reason": "", "status": "ok"}
    facts = {"error.relative": 0.5, "problem.parameters": 610.0, "coverage.parameters": 0.975, "coverage.trace": 0.25}
    rows = [
        known | {"probe": "kfac", "problem_args": "", "metric": metric, "value": value, "cell_id": "a"}
        for metric, value in facts.items()
    ]
    bad = known | {"problem_args": "network=conv2d", "metric": "", "value": None, "scope": ""}
    rows.append(bad | {"probe": "kfac", "status": "unsupported", "reason": "too wide", "cell_id": "b"})
    rows.append(bad | {"probe": "eva", "status": "timeout", "reason": "too slow", "cell_id": "c"})
    page = pages.coverage(pd.DataFrame(rows))
    rows_of_probes = "| `eva` |  | failed |\n| `kfac` | exact | unsupported |\n"
    assert f"| probe | linear | conv2d |\n| --- | --- | --- |\n{rows_of_probes}" in page
    assert "- kfac on layers[network=conv2d], seed 0: unsupported: too wide" in page
    assert "- eva on layers[network=conv2d], seed 0: timeout: too slow" in page
    assert "| `linear` | 610 | 97.5% | 25.0% |" in page and "nan" not in page


def test_the_page_of_claims_is_that_of_the_rows(pages: ModuleType) -> None:
    assert pages.claims(ROOT / "data" / "reference") == (ROOT / "docs" / "claims.md").read_text("utf-8")
