"""Every probe that the registry finds, on every case it supports: one contract for all."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
from cases import CASES, Case, few, instance_of, truth, weights_of
from torch import Tensor

import curvbench as cb
from curvbench import registry
from curvbench.meters.cost import Stepper, flop_rows
from curvbench.operators import Shifted
from curvbench.spec import PHASES, Probe

NAMES = sorted(registry.probes())

FISHERS = {name: getattr(kind, "fisher_types", ()) for name, kind in registry.probes().items()}

VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    *((name, {}) for name in NAMES),
    *((name, {"fisher_type": t}) for t in ("mc", "empirical") for name in NAMES if t in FISHERS[name]),
    ("kfac", {"fisher_type": "forward-only"}),
    ("kfac", {"kfac_approx": "reduce"}),
    ("kfac", {"damping_rule": "factored"}),
    ("kfac", {"damping_rule": "pi"}),
    ("tkfac", {"damping_rule": "exact"}),
    ("tnt", {"damping_rule": "exact"}),
    ("kronsum", {"rank": 3}),
    ("eigen", {"rank": 1}),
    ("eigen", {"rank": 2}),
    ("thor", {"split": 2}),
    ("mbf", {"fc": "all", "conv": "avg"}),
    ("ginger", {"scope": "per_tensor"}),
    ("ginger", {"bc": True, "rank": 2}),
    ("ginger", {"update_form": "fix_a"}),
    ("ginger", {"update_form": "fix_b"}),
    ("ginger", {"update_form": "printed"}),
    ("qng", {"memory": 2}),
    ("qng", {"recursion": "sum"}),
    ("shampoo", {"exponent": 0.5}),
    ("shampoo", {"represents": "trace", "decay": 0.9}),
    ("shampoo", {"block": 3, "root_every": 2}),
    ("shampoo", {"block": 4, "one_sided": True}),
    ("shampoo", {"statistic": "bg"}),
    ("psgd", {"criterion": "QEQ"}),
    ("psgd", {"statistic": "bg"}),
    ("soap", {"statistic": "bg"}),
    ("soap", {"statistic": "columns"}),
    ("soap", {"basis": "kl"}),
    ("soap", {"max_precond_dim": 4}),
    ("klshampoo", {"statistic": "columns"}),
    ("klshampoo", {"clamp": False, "max_precond_dim": 4}),
    ("lbfgs", {"memory": 2}),
    *(("lngd", {"fisher_type": t}) for t in ("lg_mc", "mc", "empirical", "type-2")),
    ("lngd", {"phi": "elementwise"}),
    ("lngd", {"positions": "mean"}),
    ("lngd", {"output": "likelihood"}),
    ("cwngd", {"scaling": "mean"}),
    ("fngd", {"damping_rule": "constant"}),
    ("fngd", {"accelerated": False}),
    *(("hylo", {"variant": v, "rank": r}) for v in ("kis", "kid") for r in (0.5, 1.0)),
    ("hylo", {"variant": "kis", "weights": "none"}),
    ("hylo", {"variant": "kid_public"}),
    ("muon", {"polar_by": "newton-schulz", "nesterov": False}),
    ("muon", {"scale": "match_rms_adamw"}),
    ("fngd", {"gram": "raw", "scale_mode": "natural"}),
    *(("cwngd", {"fisher_type": t}) for t in ("mc", "type-2")),
    ("adafactor", {"source": "gradients"}),
    ("ngplus", {"source": "gradients"}),
    ("ngplus", {"source": "momentum", "damping_rule": "code"}),
    ("ngplus", {"side": "smaller"}),
    ("ingd", {"kfac_like": True}),
    ("adahessian", {"curvature": "fisher"}),
    ("adafisher", {"norm": "none"}),
    ("ingd", {"inputs": "diagonal"}),
    ("nystrom", {"rank": 4, "power": 1}),
    ("nystrom", {"tail": "last"}),
    ("mfac", {"count": "filled", "statistic": "bg"}),
    ("cg", {"iterations": 3, "preconditioner": "kfac[damping=0.01]"}),
    ("spring", {"momentum": 0.5}),
)


def probe_id(variant: tuple[str, dict[str, Any]]) -> str:
    return "-".join([variant[0], *map(str, variant[1].values())])


@pytest.fixture
def probe(request: pytest.FixtureRequest) -> Probe:
    name, hyperparameters = request.param
    return few(name, **hyperparameters)


@pytest.fixture
def supported(probe: Probe, instance: cb.Instance) -> cb.Instance:
    if reason := probe.unsupported(instance):
        pytest.skip(reason)
    return instance


SOME = ("mlp_tanh", "nasty_cnn", "tokens", "one_sample")
OF_VARIANTS = ("nasty_cnn", "tokens")  # other hyperparameters are tried on these


def on_some(test: Callable[..., None]) -> Callable[..., None]:
    """For what the data hardly decide."""
    test.cases = SOME  # type: ignore[attr-defined]
    return test


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every probe as it is on every case of a test, and with other hyperparameters on a few."""
    if "supported" in metafunc.fixturenames:
        names = getattr(metafunc.function, "cases", tuple(CASES))
        pairs = [(v, CASES[name]) for v in VARIANTS for name in names if not v[1] or name in OF_VARIANTS]
        ids = [f"{probe_id(variant)}-{case.name}" for variant, case in pairs]
        metafunc.parametrize(("probe", "case"), pairs, ids=ids, indirect=["probe"])
    elif "probe" in metafunc.fixturenames:
        metafunc.parametrize("probe", VARIANTS, ids=probe_id, indirect=True)


def is_sampled(probe: Probe) -> bool:
    options = probe.hyperparameters
    drawn = options.get("fisher_type") in ("mc", "lg_mc") or options.get("variant") == "kis"
    return drawn or probe.statistic == "bg"


def may_be_indefinite(probe: Probe) -> bool:
    """Whether the represented matrix may have negative eigenvalues; the damped one has none all the same."""
    return probe.name == "kronsum" and probe.hyperparameters["rank"] > 1


def is_decided_by_rounding(probe: Probe, case: Case) -> bool:
    """Whether the optimum that a probe seeks is flat, as that of damping 1e-7 or less of the block's largest entry."""
    return probe.name == "klkron" and probe.fisher_type == "empirical" and case.name in ("certain", "one_hot")


def has_arbitrary_bases(probe: Probe) -> bool:
    """Whether later gradients leave the span of the first, in whose null space an eigenbasis is what rounding makes."""
    return probe.name in ("soap", "klshampoo") and probe.statistic == "bg"


def state_of(probe: Probe, instance: cb.Instance) -> Any:
    state = probe.init(instance)
    for _ in range(probe.updates):
        state = probe.update(state, instance)
    return probe.refresh(state)


def near(value: Tensor | float, expected: Tensor | float, tolerance: float) -> bool:
    """Relative distance below the tolerance; false for NaN and for another shape."""
    value, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (value, expected))
    scale = max(float(expected.abs().max()), 1e-300)
    difference, size = ((value - expected) / scale).norm(), (expected / scale).norm()
    return value.shape == expected.shape and bool(difference <= tolerance * size.clamp(min=1e-300))


def vector_for(instance: cb.Instance, seed: int = 1) -> Tensor:
    size = sum(layer.size for layer in instance.layers)
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_probes_of_the_contract_are_found() -> None:
    learning = {"ginger", "qng", "shampoo", "adam", "adamw", "sgdm", "lbfgs"}
    assert {"identity", "diag", "unit", "layer", "full", "kfac"} | learning <= set(NAMES)


def test_operator_is_one_matrix_in_every_method(probe: Probe, supported: cb.Instance) -> None:
    operator, vector = cb.fit(probe, supported), vector_for(supported)
    dense = operator.to_dense()
    assert tuple(operator.shape) == (len(vector), len(vector)) == tuple(dense.shape)
    assert near(dense, dense.T, 1e-12)
    assert near(operator.matvec(vector), dense @ vector, 1e-10)
    assert near(operator.matmat(torch.stack([vector, -vector], 1)), dense @ torch.stack([vector, -vector], 1), 1e-10)
    assert near(float(operator.trace()), dense.trace(), 1e-10)
    assert near(float(operator.frobenius_norm()), (dense / dense.abs().max()).norm() * dense.abs().max(), 1e-10)
    assert near(operator.diagonal(), dense.diagonal(), 1e-10)
    eigenvalues = torch.linalg.eigvalsh(dense)
    assert near(operator.eigenvalues(3), eigenvalues.flip(0)[:3], 1e-10)
    is_semidefinite = float(eigenvalues[0]) >= -1e-12 * float(eigenvalues[-1])
    assert is_semidefinite or may_be_indefinite(probe), "not positive semi-definite"
    damping = 1e-3 * float(operator.eigenvalues(1)[0])
    if may_be_indefinite(probe):
        damping = max(damping, -2 * operator.smallest_eigenvalue())
    assert near(operator.solve(operator.matvec(vector) + damping * vector, damping), vector, 1e-10), "solve"


def test_precondition_is_the_damped_inverse(probe: Probe, supported: cb.Instance) -> None:
    """Of the operator where the damping rule is exact; a symmetric positive linear map under every rule.

    A step that is not linear, as one of a solver, follows the gradient's size and is a direction of descent.
    """
    state, v, w = state_of(probe, supported), vector_for(supported), vector_for(supported, seed=2)
    first, second, damped = probe.precondition(state, v), probe.precondition(state, w), probe.damped(state)
    assert first.shape == v.shape and bool(torch.isfinite(first).all())
    if probe.has_own_momentum:
        assert torch.equal(first, second), "the step is made of gradients that update has taken in"
        return
    damped = probe.damped(state)
    if damped is None:  # a step of no matrix, which need not be linear
        assert float(v @ first) > 0
        return
    assert near(probe.precondition(state, 2 * v - w), 2 * first - second, 1e-9)
    assert abs(float(w @ first - v @ second)) <= 1e-9 * float(w.norm() * first.norm() + v.norm() * second.norm())
    assert float(v @ first) > 0
    if isinstance(damped, Shifted) and (damping := damped.shift):
        dense = probe.operator(state).to_dense()
        condition = 1 + float(dense.norm()) / damping
        assert near(first, probe.operator(state).solve(v, damping), max(1e-9, 1e-14 * condition))
        assert near(first, oracles.natural_gradient(dense, v, damping), max(1e-10, 1e-14 * condition))


@on_some
def test_refresh_alone_makes_a_state_ready(probe: Probe, supported: cb.Instance) -> None:
    """A second refresh changes nothing, and refresh does not change the represented matrix."""
    updated = probe.update(probe.init(supported), supported)
    refreshed = probe.refresh(updated)
    vector = vector_for(supported)
    assert torch.equal(probe.operator(updated).to_dense(), probe.operator(refreshed).to_dense())
    assert near(probe.precondition(probe.refresh(refreshed), vector), probe.precondition(refreshed, vector), 1e-12)


@on_some
def test_fit_is_as_many_updates_as_the_probe_says(probe: Probe, supported: cb.Instance) -> None:
    by_hand = probe.operator(state_of(probe, supported)).to_dense()
    assert torch.equal(cb.fit(probe, supported).to_dense(), by_hand)


@on_some
def test_state_round_trip(probe: Probe, supported: cb.Instance) -> None:
    state, vector = state_of(probe, supported), vector_for(supported)
    copy = pickle.loads(pickle.dumps(state))
    assert torch.equal(probe.operator(copy).to_dense(), probe.operator(state).to_dense())
    assert torch.equal(probe.precondition(copy, vector), probe.precondition(state, vector))


@pytest.mark.parametrize("name", ["mlp_tanh", "conv1d"])
def test_errors_take_no_product_per_column(probe: Probe, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every family has a closed form."""
    instance = instance_of(name)
    apart = probe.name == "mbf" and any(layer.kind != "linear" and layer.bias for layer in instance.layers)
    if apart or probe.hyperparameters.get("block") or probe.unsupported(instance):
        pytest.skip("not covered, or mini-blocks beside the entry of a bias or blocks of columns, which have none")
    fisher = cb.exact_fisher(instance)
    monkeypatch.delattr(type(fisher), "stacks")
    assert cb.errors(cb.fit(probe, instance), fisher)["relative"] >= 0


def test_no_tensor_is_made_on_the_default_device(probe: Probe) -> None:
    """On a GPU a factory without a device makes a tensor on the host, which fails late or not at all here."""
    instance = instance_of("nasty_cnn")
    if reason := probe.unsupported(instance):
        pytest.skip(reason)
    with torch.device("meta"):
        instance = cb.Instance(instance.model, instance.inputs, instance.targets, instance.loss)
        state = state_of(probe, instance)
        found = [probe.precondition(state, instance.gradient()), probe.operator(state).matvec(instance.gradient())]
    assert not any(tensor.is_meta for tensor in found)


@on_some
def test_precondition_changes_neither_state_nor_gradient(probe: Probe, supported: cb.Instance) -> None:
    state, vector = state_of(probe, supported), vector_for(supported)
    kept, before = vector.clone(), pickle.dumps(state)
    first = probe.precondition(state, vector)
    assert torch.equal(vector, kept)
    assert torch.equal(first, probe.precondition(state, vector))
    assert pickle.dumps(state) == before


def rearranged(case: Case, index: Tensor) -> cb.Instance:
    model, inputs, targets = case.build()
    return weights_of(model, inputs[index], targets[index], loss=case.loss)


@on_some
def test_order_of_the_samples_does_not_matter(probe: Probe, supported: cb.Instance, case: Case) -> None:
    if is_sampled(probe):
        pytest.skip("labels are drawn sample by sample")
    if is_decided_by_rounding(probe, case):
        pytest.skip("rounding decides where the rounds end")
    count = len(case.build()[1])
    other = rearranged(case, torch.arange(count).flip(0))
    assert near(cb.fit(probe, other).to_dense(), cb.fit(probe, supported).to_dense(), 1e-10)


@on_some
def test_samples_given_twice_change_nothing(probe: Probe, supported: cb.Instance, case: Case) -> None:
    """A sum over the batch doubles."""
    if is_sampled(probe):
        pytest.skip("labels are drawn sample by sample")
    if not probe.is_mean_over_samples:
        pytest.skip("the matrix grows with the batch")
    if is_decided_by_rounding(probe, case):
        pytest.skip("rounding decides where the rounds end")
    other = rearranged(case, torch.arange(len(case.build()[1])).repeat(2))
    factor = 2 if probe.hyperparameters.get("scaling") == "sum" else 1
    assert near(cb.fit(probe, other).to_dense(), factor * cb.fit(probe, supported).to_dense(), 1e-10)


@on_some
def test_an_instance_is_left_as_it_was(probe: Probe, supported: cb.Instance) -> None:
    first = cb.fit(probe, supported).to_dense()
    assert torch.equal(cb.fit(probe, supported).to_dense(), first)


@pytest.mark.parametrize("name", ["dead_channel", "one_hot", "certain"])
def test_no_nan_where_nothing_flows(probe: Probe, name: str) -> None:
    instance = instance_of(name)
    if reason := probe.unsupported(instance):
        pytest.skip(reason)
    state = state_of(probe, instance)
    step = probe.precondition(state, instance.gradient())
    assert bool(torch.isfinite(step).all())
    assert bool(torch.isfinite(probe.operator(state).to_dense()).all())


@pytest.mark.parametrize("name", ["nasty_cnn", "tokens"])
def test_every_operation_is_counted(probe: Probe, name: str) -> None:
    stepper = Stepper(probe, instance_of(name))
    rows = [row for row in flop_rows(stepper) if row.metric == "flops.uncounted_ops"]
    assert {row.scope for row in rows} == set(PHASES)
    assert not [row.reason for row in rows if row.value]


def test_single_precision_stays_near_double(probe: Probe) -> None:
    """Finite, of the instance's dtype, and the same matrix but for rounding, unless rounding chooses a part of it."""
    instance = instance_of("nasty_cnn")
    single = instance.to(torch.float32)
    state, truth_ = state_of(probe, single), probe.operator(state_of(probe, instance)).to_dense()
    found, step = probe.operator(state).to_dense(), probe.precondition(state, single.gradient())
    assert found.dtype == step.dtype == torch.float32 and bool(torch.isfinite(step).all())
    assert has_arbitrary_bases(probe) or near(found, truth_, 1e-2)


# --- bad input ---------------------------------------------------------------------------------------------


def some_samples(name: str, count: int) -> cb.Instance:
    case = CASES[name]
    model, inputs, targets = case.build()
    return weights_of(model, inputs[:count], targets[:count], loss=case.loss)


LEARNS = ("updates", "ema", "beta1")  # fields of probes that carry something from one update to the next


@pytest.mark.parametrize(("name", "count"), [("nasty_cnn", 3), ("tokens", 1)])
def test_a_last_batch_may_be_smaller(probe: Probe, name: str, count: int) -> None:
    """Its statistics replace those of the batch before, or join them; both gradients can be preconditioned."""
    whole, part = instance_of(name), some_samples(name, count)
    if reason := probe.unsupported(whole) or probe.unsupported(part):
        pytest.skip(reason)
    state = probe.refresh(probe.update(state_of(probe, whole), part))
    found = probe.operator(state).to_dense()
    for gradient in (whole.gradient(), part.gradient()):
        assert bool(torch.isfinite(probe.precondition(state, gradient)).all())
    eigenvalues = torch.linalg.eigvalsh(found)
    assert float(eigenvalues[0]) >= -1e-12 * float(eigenvalues[-1]) or may_be_indefinite(probe)
    if not any(field in probe.hyperparameters for field in LEARNS):
        assert torch.equal(found, probe.operator(probe.update(probe.init(part), part)).to_dense())


@pytest.mark.parametrize("name", ["dead_unit", "one_hot", "nasty_cnn"])
def test_without_damping_a_matrix_is_solved_or_refused_as_singular(probe: Probe, name: str) -> None:
    """In one line that names the damping: neither NaN nor what rounding makes of a singular factor."""
    if probe.damping_unit(1) is None:
        pytest.skip("no damping of its own")
    instance = instance_of(name)
    try:
        undamped = dataclasses.replace(probe, damping=0.0)
        if reason := undamped.unsupported(instance):
            pytest.skip(reason)
        state = state_of(undamped, instance)
        step = undamped.precondition(state, instance.gradient())
    except ValueError as refusal:
        assert "damping" in str(refusal) and "\n" not in str(refusal)
    else:
        assert near(undamped.operator(state).matvec(step), instance.gradient(), 1e-4)


def fewest_parameters() -> cb.Instance:
    """Two of them."""
    model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False)).double()
    return cb.Instance(model, torch.randn(5, 1).double(), torch.arange(5) % 2)


def test_more_ranks_than_parameters_are_refused_or_cut(probe: Probe) -> None:
    """Unsupported with a reason, or as many as there are."""
    instance = fewest_parameters()
    if reason := probe.unsupported(instance):
        assert "parameters" in reason and "\n" not in reason
        return
    state = state_of(probe, instance)
    found = probe.operator(state).to_dense()
    assert found.shape == (2, 2) and bool(torch.isfinite(found).all())
    assert bool(torch.isfinite(probe.precondition(state, instance.gradient())).all())


# --- hyperparameters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_defaults_describe_themselves(name: str) -> None:
    probe = cb.probe(name)
    assert probe.name == name == probe.label
    assert registry.probes()[name].__doc__, "the first line is what `curvbench list` shows"
    assert dataclasses.is_dataclass(probe) and hash(probe) == hash(cb.probe(name))
    assert pickle.loads(pickle.dumps(probe)) == probe
    with pytest.raises(dataclasses.FrozenInstanceError):
        probe.anything = 1


BAD: dict[str, tuple[Any, ...]] = {
    "damping": (-1e-3, math.nan, math.inf, "small"),
    "mc_samples": (0, -1, 1.5, True),
    "fisher_type": ("nonsense", 3),
    "kfac_approx": ("nonsense",),
    "damping_rule": ("nonsense",),
    "seed": ("one", 0.5),
    "updates": (0, -1, 1.5),
    "rank": (0, 2.5),
    "memory": (0, 2.5),
    "decay": (0.0, 1.0, -0.5, 1.5, math.nan),
    "ema": (-0.1, 1.0, math.nan),
    "mu": (-1e-8, math.inf, math.nan),
    "alpha": (0.0, -1.0, math.inf, math.nan),
    "batches": (0, 1.5),
    "draws": (0, 1.5),
    "split": (0, 1.5),
    "iterations": (0, 1.5),
    "tolerance": (0.0, 1.0, math.nan),
    "beta1": (-0.1, 1.0),
    "beta2": (-0.1, 1.0),
    "momentum": (-0.1, 1.0),
    "epsilon": (-1e-8, math.inf, math.nan),
    "weight_decay": (-1e-3, math.inf),
    "bc": (1, "maybe"),
    "floor": (1, "maybe"),
    "batch_size": (0, -1, 1.5),
    "scope": ("nonsense",),
    "update_form": ("nonsense",),
    "recursion": ("nonsense",),
    "exponent": ("nonsense", -0.25, math.nan),
    "represents": ("nonsense",),
    "graft": ("nonsense",),
    "block": (0, 1.5),
    "root_every": (0, 1.5),
    "statistic": ("nonsense",),
    "ns_steps": (0, -1, 1.5, True),
    "polar": ("nonsense", True),
    "polar_by": ("nonsense",),
    "scale": ("nonsense",),
    "basis": ("nonsense",),
    "basis_every": (0, 1.5),
    "clamp": (1, "maybe"),
    "max_precond_dim": (0, 1.5),
}


@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name in NAMES for key in BAD if key in cb.probe(name).hyperparameters]
)
def test_wrong_hyperparameters_are_refused(name: str, key: str) -> None:
    for value in BAD[key]:
        if (name, key, value) == ("shampoo", "decay", 1.0):
            continue  # a sum
        with pytest.raises(ValueError) as caught:
            cb.probe(name, **{key: value})
        assert key in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_hyperparameter_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match="no_such_option"):
        cb.probe(name, no_such_option=1)


def test_an_unknown_probe_is_an_error_with_near_misses() -> None:
    with pytest.raises(ValueError, match="kfac") as caught:
        cb.probe("kfca")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("alias", ["type2", "exact"])
@pytest.mark.parametrize("name", ["diag", "unit", "layer", "full", "kfac"])
def test_aliases_are_stored_as_type_2(name: str, alias: str) -> None:
    assert cb.probe(name, fisher_type=alias) == cb.probe(name, fisher_type="type-2")
    assert cb.probe(name, fisher_type=alias).hyperparameters["fisher_type"] == "type-2"


@pytest.mark.parametrize("name", ["diag", "unit", "layer", "full"])
def test_forward_only_is_for_kfac(name: str) -> None:
    """The other probes have no meaning for it: refused when made or named unsupported, never ignored."""
    try:
        probe = cb.probe(name, fisher_type="forward-only")
    except ValueError as refusal:
        assert "forward-only" in str(refusal)
    else:
        assert probe.unsupported(instance_of("mlp_tanh"))


def test_damping_zero_is_allowed_where_the_matrix_is_regular() -> None:
    """A diagonal without dead entries has an inverse."""
    instance, diagonal = instance_of("mlp_tanh"), truth("mlp_tanh").fisher().diagonal()
    probe, vector = cb.probe("diag", damping=0.0), vector_for(instance_of("mlp_tanh"))
    assert near(probe.precondition(state_of(probe, instance), vector), vector / diagonal, 1e-10)


@pytest.mark.parametrize("name", ["diag", "unit", "layer", "full", "kfac"])
def test_sampled_probes_have_a_seed(name: str) -> None:
    def dense(seed: int) -> Tensor:
        return cb.fit(cb.probe(name, fisher_type="mc", seed=seed), instance_of("nasty_cnn")).to_dense()

    assert torch.equal(dense(1), dense(1))
    assert not torch.equal(dense(1), dense(2))


@pytest.mark.parametrize("name", ["diag", "unit", "layer", "full", "kfac"])
def test_more_samples_come_nearer_to_type_2(name: str) -> None:
    instance = instance_of("mlp_tanh")
    truth_2 = cb.fit(cb.probe(name), instance).to_dense()

    def error(samples: int) -> float:
        found = [
            oracles.relative(
                cb.fit(cb.probe(name, fisher_type="mc", mc_samples=samples, seed=seed), instance).to_dense(), truth_2
            )
            for seed in range(4)
        ]
        return sum(found) / len(found)

    assert error(2) / error(200) > 4


def test_cases_are_all_there() -> None:
    """A probe that calls everything unsupported would pass every test above."""
    for name in ("diag", "unit", "layer", "full", "kfac"):
        unsupported = [c for c in CASES if cb.probe(name).unsupported(instance_of(c))]
        assert not unsupported, f"{name} does not cover {unsupported}"
