"""FLOPs and memory three ways, one story: counted, published, and the growth of both in ``suites/scaling``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import curvbench as cb
from curvbench import numerics, registry, training
from curvbench.analysis.scaling import QUANTITIES, Growth, growth
from curvbench.meters.cost import Stepper, flop_rows, published_cost, state_rows
from curvbench.meters.flops import FlopMeter
from curvbench.spec import Preset, Probe, Problem

SUITE = registry.load_suite(Path(__file__).parent.parent / "suites" / "scaling")[1]

UNPUBLISHED = {
    "klkron": "a reference point of this project: no paper gives a cost, and the data decide the rounds",
    "kronsum": "a reference point of this project: no paper gives a cost, and the data decide the rounds",
    "kpsvd": "a reference point of this project: no paper gives a cost, and the data decide the rounds",
    "diagpair": "a reference point of this project: no paper gives a cost",
    "eigen": "a reference point of this project: no paper gives a cost",
}
"""Probes without a model, and why. Any other probe must agree with its model in every quantity of every sweep."""


def cells(preset: Preset) -> Iterator[tuple[Problem, Probe]]:
    yield from ((problem, probe) for problem in preset.problems for probe in preset.probes)
    yield from preset.pairs


def rows_of(problem: Problem, probe: Probe) -> list[dict]:
    torch.manual_seed(0)
    dtype = getattr(torch, SUITE.presets["default"].dtype)
    inputs, targets = training.batch(problem, problem.data(None), 0, "cpu", dtype)
    stepper = Stepper(probe, cb.Instance(problem.model().to(dtype), inputs, targets, problem.loss))
    cell = {"problem": problem.name, "problem_args": problem.arguments, "seed": 0}
    cell |= {"probe": probe.name, "probe_args": probe.arguments}
    return [cell | vars(row) for row in (*flop_rows(stepper), *state_rows(stepper))]


pytestmark = pytest.mark.long  # the sweep takes a minute


@pytest.fixture(scope="module")
def found() -> list[Growth]:
    return growth(pd.DataFrame([row for cell in cells(SUITE.presets["default"]) for row in rows_of(*cell)]))


def name(row: Growth) -> str:
    return row.probe.partition("[")[0]


def test_counted_over_modelled_is_a_constant_and_exponents_match(found: list[Growth]) -> None:
    wrong = [f"{tuple(row)}" for row in found if name(row) not in UNPUBLISHED and not row.agrees]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_every_published_cost_is_swept(found: list[Growth]) -> None:
    """Width of linear layers and of convolutions, batch, and the ranks: none is left out for want of sizes."""
    published = {probe for probe in registry.probes() if probe not in UNPUBLISHED}
    for sweep in (
        "chain[width=32..256,samples=2]",
        "chain[width=8..64,layer=conv2d,samples=2]",
        "chain[width=8,samples=32..256]",
    ):
        there = {name(row) for row in found if row.problem == sweep}
        assert there | {"identity"} >= published
    ranked = {row.probe for row in found if ".." in row.probe}
    swept = {"ginger[rank", "qng[memory", "hylo[rank", "lbfgs[memory", "nystrom[rank", "mfac[memory", "cg[iterations"}
    assert {label.partition("=")[0] for label in ranked} == swept


@pytest.mark.slow
@pytest.mark.parametrize(
    ("probe", "quantity", "width"),
    [
        *(("kfac", "statistics", 2), ("kfac", "invert", 3), ("kfac", "precondition", 3), ("kfac", "memory", 2)),
        *(("unit", "statistics", 3), ("unit", "invert", 4), ("unit", "precondition", 3), ("unit", "memory", 3)),
        *(("eva", "statistics", 1), ("eva", "precondition", 2), ("eva", "memory", 1)),
        *(("shampoo", "statistics", 3), ("shampoo", "invert", 3), ("lngd", "precondition", 3)),
        *(("ginger", "statistics", 2), ("full", "statistics", 1), ("full", "precondition", 2), ("full", "invert", 0)),
    ],
)
def test_exponents_are_those_of_the_papers(found: list[Growth], probe: str, quantity: str, width: int) -> None:
    """By hand from the tables of complexity, so that model and count cannot be wrong together."""
    [row] = [r for r in found if (r.problem, name(r), r.quantity) == (SWEPT, probe, quantity)]
    assert abs(row.counted.value - width) <= max(row.counted.half, 0.1)


SWEPT = "chain[width=32..256,samples=2]"


def test_every_other_probe_has_a_model() -> None:
    sizes = cb.Instance(torch.nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])).sizes.values()
    for probe in cb.every_probe():
        model = published_cost(probe, list(sizes), 4, 1)
        assert set(model) == (set() if probe.name in UNPUBLISHED else set(QUANTITIES)), probe.name


ORDER = 64


@pytest.fixture(scope="module")
def square() -> cb.Instance:
    """One layer and a batch, all of one order, so that every factorization is of that order."""
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(ORDER - 1, ORDER), torch.randn(ORDER, ORDER - 1)
    return cb.Instance(layer.double(), x.double(), torch.arange(ORDER))


def per_phase(probe: Probe, instance: cb.Instance) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in flop_rows(Stepper(probe, instance)):
        found.setdefault(row.scope, {})[row.metric] = row.value
    return found


FACTORIZED = (
    *(
        "kfac",
        "kfac[damping_rule=factored]",
        "tkfac",
        "tkfac[damping_rule=exact]",
        "tnt",
        "tnt[damping_rule=exact]",
        "thor",
        "lngd",
        "shampoo[updates=1]",
    ),
    *("full", "layer", "fngd", "hylo[rank=1.0]", "unit", "cwngd", "mbf", "mbf[fc=all]", "skfac", "ngplus"),
    *("ief", "nystrom[rank=32]", "mfac[memory=64,updates=64]"),
)


@pytest.mark.parametrize("label", FACTORIZED)
def test_a_factorization_is_modelled_as_it_is_counted(label: str, square: cb.Instance) -> None:
    """Ratio 1, not a constant: multiply-adds are two FLOP on both sides."""
    probe = registry.parse_probe(label)
    if "fisher_type" in probe.hyperparameters and probe.name != "lngd":
        probe = replace(probe, fisher_type="empirical")
    found = per_phase(probe, square)["invert"]
    assert found["flops.counted"] / found["flops.model"] == pytest.approx(1, abs=4 / ORDER)


def test_ekfac_s_basis_is_modelled_as_it_is_counted() -> None:
    layer = torch.nn.Linear(ORDER - 1, ORDER).double()
    found = per_phase(
        registry.probe("ekfac"), cb.Instance(layer, torch.randn(1, ORDER - 1).double(), torch.tensor([0]))
    )
    own = found["statistics"]["flops.counted"] - found["statistics"]["flops.passes"]
    assert own / found["statistics"]["flops.model"] == pytest.approx(1, abs=8 / ORDER)


@pytest.mark.parametrize(
    "label",
    [
        *("muon[updates=1]", "muon[updates=1,polar_by=newton-schulz]", "shampoo[updates=1,polar=whitened]"),
        *("kfac[polar=after,fisher_type=empirical]", "tkfac[polar=whitened,fisher_type=empirical]"),
    ],
)
def test_polar_factors_are_modelled_as_they_are_counted(label: str, square: cb.Instance) -> None:
    found = per_phase(registry.parse_probe(label), square)
    for phase in ("invert", "precondition"):
        counted, modelled = (found[phase][f"flops.{kind}"] for kind in ("counted", "model"))
        assert counted == pytest.approx(modelled, rel=1 / ORDER), phase


def test_every_probe_that_factorizes_is_among_them(square: cb.Instance) -> None:
    sizes = list(square.sizes.values())
    there = {label.partition("[")[0] for label in FACTORIZED}
    assert there == {p.name for p in cb.every_probe() if published_cost(p, sizes, ORDER, 1).get("invert")}


@pytest.mark.parametrize(
    ("constant", "act"),
    [
        (1 / 6, lambda A: numerics.damped_cholesky(A, 0.0)),
        (1 / 2, lambda A: numerics.damped_inverse(A, 0.0)),
        (9 / 2, numerics.eigh),
    ],
)
def test_the_constants_are_the_meter_s(constant: float, act: Callable[[torch.Tensor], object]) -> None:
    """The multiply-adds of a factorization of order n over n^3: Golub, Van Loan, Matrix Computations, 4.2 and 8.3."""
    with FlopMeter() as meter:
        act(torch.eye(240).double())
    assert meter.total == pytest.approx(2 * constant * 240**3, rel=0.02)
