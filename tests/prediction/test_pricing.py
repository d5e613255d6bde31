"""Predicted costs against what the meters count on real networks: within 10 % wherever that is claimed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from networks import NETWORKS

import curvbench as cb
from curvbench import registry
from curvbench.meters.cost import Stepper, flop_rows, peak_rows, state_rows
from curvbench.parts import factors, storage
from curvbench.prediction.pricing import METHODS, QUANTITIES, price
from curvbench.spec import Probe

WITHIN = 0.1
QUICK = ("mlp", "cnn", "transformer")
LABELS = sorted(METHODS)
VARIANTS = (
    *("kfac[kfac_approx=reduce]", "kfac[fisher_type=mc,mc_samples=3]", "kfac[fisher_type=forward-only]"),
    *("kfac[damping_rule=pi]", "kfac[damping_rule=factored]", "kfac[others=unit]", "kfac[others=block]"),
    *("kfac[fisher_type=empirical]", "ekfac[ema=0.9]", "ekfac[scalings=running-average,fisher_type=empirical]"),
    *(
        "tkfac[damping_rule=exact]",
        "thor[split=16]",
        "skfac[fisher_type=mc]",
        "shampoo[statistic=bg]",
        "psgd[criterion=QEQ]",
    ),
    *("ginger[rank=4]", "ginger[scope=per_tensor]", "qng[memory=4]", "eigen[rank=4]", "sgdm[weight_decay=0.1]"),
    *("cwngd[scaling=mean]", "unit[fisher_type=mc]", "mbf[fc=all]", "mbf[conv=avg]", "diag[fisher_type=empirical]"),
    *("full[fisher_type=mc]", "layer[fisher_type=empirical]", "fngd[stage=shared]", "lngd[layer_rate=corrected]"),
    "lngd[positions=mean]",
    *("hylo[rank=0.5]", "hylo[variant=kis]", "hylo[variant=kid_public]", "hylo[fisher_type=type-2]"),
    *("lngd[fisher_type=type-2]", "eva[positions=sum]", "adamw[weight_decay=0.1]"),
    *("adafactor[source=gradients]", "adafisher[norm=none]", "adahessian[curvature=fisher]", "hutchinson[draws=3]"),
    *("ingd[updates=2,inputs=diagonal]", "ingd[updates=2,kfac_like=true]", "ngplus[side=smaller]"),
    *("ngplus[source=gradients]", "ngplus[source=momentum,damping_rule=code]"),
    *("kfac[polar=after]", "tkfac[polar=whitened]", "shampoo[polar=whitened]", "shampoo[polar=after]"),
    *("muon[polar_by=newton-schulz]", "muon[nesterov=false,scale=match_rms_adamw]"),
    *("nystrom[rank=4,power=1]", "nystrom[tail=last]", "mfac[memory=4,statistic=bg]", "ief[damping_rule=gram]"),
    *("spring[fisher_type=mc]", "cg[iterations=3,fisher_type=empirical]"),
    *("cg[preconditioner=kfac]", "cg[preconditioner=nystrom[rank=4,fisher_type=mc]]"),
)
LEADING: dict[str, set[str]] = {
    **{name: set() for name in METHODS},
    "lbfgs": {"statistics", "invert", "precondition", "state"},  # the loss decides how many pairs there are
    **{name: {"statistics"} for name in ("adahessian", "hutchinson")},  # derivatives of the network in two ways
    "sophia": {"statistics"},  # labels are drawn in one of several updates
    "klshampoo": {"statistics"},
    "soap": {"statistics"},  # of an average step: the measured one makes a basis
    "lngd": {"statistics"},  # what lies between the layers decides the derivatives of the maps
}
OF_COLUMNS = {"statistics", "precondition", "state"}  # columns of a tied block are sums, which are formed
LEADING_OF_LANGUAGE: dict[str, set[str]] = {
    **LEADING,
    **{name: {"statistics"} for name in ("adafactor", "diag", "eigen", "ekfac", "eva", "ingd", "mbf", "ngplus", "tnt")},
    **{name: OF_COLUMNS for name in ("cg", "fngd", "full", "ief", "layer")},
    "nystrom": {"statistics"},
    "spring": {"statistics", "state"},
    "skfac": {"statistics", "invert", "precondition", "state"},
    "hylo": {"statistics", "invert", "precondition", "state"},  # pivots end at a rank that the data decide
}


@cache
def instance(network: str) -> cb.Instance:
    torch.manual_seed(0)
    return NETWORKS[network]().instance()


@cache
def shapes(network: str) -> cb.Shapes:
    return cb.shapes(instance(network))


def counted(probe: Probe, network: str) -> dict[str, float]:
    """FLOPs per phase and of the step, and bytes of the state, as the meters find them in a real step."""
    stepper = Stepper(probe, instance(network))
    flops = {row.scope: row.value for row in flop_rows(stepper) if row.metric == "flops.counted"}
    state = next(r.value for r in state_rows(stepper) if (r.metric, r.scope) == ("memory.state", "step"))
    return {**flops, "state": state}


def apart(cost: cb.Cost, found: Mapping[str, float]) -> dict[str, float]:
    """The claimed quantities that are farther than 10 % from the count, with the ratio."""
    predicted = {key: getattr(cost, key) for key in (*QUANTITIES, "step")}
    claimed = set(predicted) - cost.leading - ({"step"} if cost.leading - {"state"} else set())
    ratios = {key: predicted[key] / found[key] if found[key] else 1 + predicted[key] for key in claimed}
    return {key: ratio for key, ratio in ratios.items() if abs(ratio - 1) > WITHIN}


def check(label: str, network: str) -> None:
    probe = registry.parse_probe(label)
    if reason := probe.unsupported(instance(network)):
        pytest.skip(reason)
    cost = cb.cost(shapes(network), probe, dtype="float64")
    assert apart(cost, counted(probe, network)) == {}


@pytest.mark.parametrize(
    "network", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS if n not in QUICK)]
)
@pytest.mark.parametrize("name", LABELS)
def test_claims_hold_within_a_tenth(name: str, network: str) -> None:
    check(name, network)


@pytest.mark.slow
@pytest.mark.parametrize(("label", "network"), list(zip(VARIANTS, itertools.cycle(QUICK), strict=False)))
def test_claims_hold_for_other_hyperparameters(label: str, network: str) -> None:
    check(label, network)


def test_a_wrong_prediction_would_be_found() -> None:
    found = counted(registry.probe("kfac"), "mlp")
    assert set(apart(cb.cost(shapes("transformer"), "kfac", dtype="float64"), found)) >= {"statistics", "state"}


@pytest.mark.parametrize("network", ["mlp", "language"])
def test_exactly_these_are_leading_order_only(network: str) -> None:
    leading = {name: set(cb.cost(shapes(network), name).leading) for name in METHODS}
    assert leading == (LEADING_OF_LANGUAGE if network == "language" else LEADING)


def test_every_method_has_an_estimate_or_is_known_to_have_none() -> None:
    unpriced = sorted(set(registry.probes()) - set(METHODS))
    assert unpriced == ["diagpair", "klkron", "kpsvd", "kronsum"]
    for name in unpriced:
        with pytest.raises(ValueError, match=f"{name} has no estimate"):
            cb.cost(shapes("mlp"), name)
    why = "has no estimate, because it publishes no cost (About.cost)"
    assert cb.cost(shapes("mlp")).omitted == tuple(f"{name} {why}" for name in unpriced)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_gradient_is_predicted(network: str) -> None:
    """From a model two passes are counted, so that only the update and the loss are the prediction's own."""
    found = counted(registry.probe("identity"), network)
    assert cb.cost(shapes(network), "identity").gradient == pytest.approx(found["step"], rel=0.02)


@pytest.mark.parametrize("network", QUICK)
@pytest.mark.parametrize("name", ["adam", "kfac", "ekfac", "full", "diag", "shampoo", "unit", "ginger"])
def test_a_peak_is_predicted_within_a_factor_of_two_and_a_half(name: str, network: str) -> None:
    """Of a step, above weights, momentum and old state, which live before it."""
    stepper = Stepper(registry.probe(name), instance(network))
    found = next(r.value for r in peak_rows(stepper) if (r.metric, r.scope) == ("memory.peak", "step"))
    cost = cb.cost(shapes(network), name, dtype="float64")
    predicted = cost.total - cost.state - 2 * 8 * shapes(network).parameters
    assert 0.4 < predicted / found < 2.5


# Large factors.


@pytest.mark.parametrize("name", ["kfac", "ekfac", "tkfac", "thor", "skfac", "shampoo", "lngd"])
@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_factors_above_the_limit_are_diagonals(name: str, network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "LARGEST_SIDE", 28)
    torch.manual_seed(0)
    probe = registry.probe(name, **({"split": 8} if name == "thor" else {}))
    cost = cb.cost(shapes(network), probe, dtype="float64")
    assert cost.state < 0.95 * _uncut(probe, network, monkeypatch)
    assert apart(cost, counted(probe, network)) == {}


def _uncut(probe: Probe, network: str, monkeypatch: pytest.MonkeyPatch) -> float:
    with monkeypatch.context() as patch:
        patch.setattr(factors, "LARGEST_SIDE", 8192)
        return cb.cost(shapes(network), probe, dtype="float64").state


@pytest.mark.parametrize("label", ["shampoo", "hylo[rank=0.5]", "mbf", "mbf[fc=all]"])
@pytest.mark.parametrize("network", QUICK)
@pytest.mark.parametrize("limit", [10**3, 10**5, 10**9])
def test_a_method_declines_what_its_own_code_declines(
    label: str, network: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "LIMIT_BYTES", limit)
    probe = registry.parse_probe(label)
    cost = cb.cost(shapes(network), probe, dtype="float64", budget=1e12)
    assert cost.refused == (probe.unsupported(instance(network)) or "")
    assert cost.fits == (not cost.refused)


@pytest.mark.parametrize(
    "label", ["eigen", "eigen[rank=2]", "ginger", "ginger[rank=12]", "qng", "qng[memory=3]", "nystrom"]
)
def test_a_rank_above_what_there_is_is_declined(label: str) -> None:
    torch.manual_seed(0)
    few = cb.Instance(torch.nn.Linear(3, 3).double(), torch.randn(2, 3).double(), torch.tensor([0, 1]))
    probe = registry.parse_probe(label)
    assert bool(cb.cost(cb.shapes(few), probe).refused) == bool(probe.unsupported(few))


@pytest.mark.parametrize("name", ["unit", "cwngd"])
def test_unit_blocks_that_are_not_stored_are_formed_at_every_solve(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In leading order, for the real ones keep the factors of some layers."""
    monkeypatch.setattr(storage, "LIMIT_BYTES", 1000)
    probe = registry.probe(name)
    cost, found = cb.cost(shapes("transformer"), probe, dtype="float64"), counted(probe, "transformer")
    assert cost.leading == set(QUANTITIES)
    assert cost.state == pytest.approx(found["state"], rel=0.05)
    assert cost.step == pytest.approx(found["step"], rel=0.3)


# Arithmetic.


def test_a_step_is_averaged_over_the_interval() -> None:
    cost = cb.cost(shapes("mlp"), "kfac", refresh=10)
    assert cost.step == cost.gradient + (cost.statistics + cost.invert) / 10 + cost.precondition
    shampoo = cb.cost(shapes("mlp"), "shampoo", refresh=10)
    assert shampoo.step == shampoo.gradient + shampoo.statistics + shampoo.invert / 10 + shampoo.precondition


def test_the_interval_is_the_first_at_which_a_tenth_suffices() -> None:
    cost = cb.cost("resnet50", "thor")
    first = int(cost.interval)
    assert cb.cost("resnet50", "thor", refresh=first).gradients <= 1.1
    assert cb.cost("resnet50", "thor", refresh=first - 1).gradients > 1.1
    assert cb.cost("resnet50", "kfac").interval == float("inf"), "a step alone takes more than a tenth"
    assert cb.cost("resnet50", "adam").interval == 1


def test_bytes_follow_the_dtype_and_statistics_have_four_at_least() -> None:
    half, single, double = (cb.cost("gpt2", "kfac", dtype=d) for d in ("bfloat16", "float32", "float64"))
    assert half.state == single.state == double.state / 2
    assert half.sgd == single.sgd / 2 == double.sgd / 4


def test_a_method_of_ones_own_has_its_published_cost_in_leading_order(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom curvbench.probes.identity import IdentityProbe\n"
        "from curvbench.spec import About\n\n@dataclass(frozen=True)\nclass Mine(IdentityProbe):\n"
        '    about = About(cost={"statistics": "G M D S", "invert": "L", "precondition": "P", "memory": "3 P"})\n'
    )
    cost = cb.cost(shapes("mlp"), f"{file}:Mine")
    P = instance("mlp").size
    assert (cost.statistics, cost.invert, cost.precondition, cost.state) == (2 * P, 6, 2 * P, 12 * P)
    assert cost.leading == set(QUANTITIES)


def test_price_is_what_the_call_gives() -> None:
    assert price(registry.probe("kfac"), shapes("cnn"), 5, "float64") == cb.cost(
        shapes("cnn"), "kfac", refresh=5, dtype="float64"
    )
