"""Probes in other digits: K-FAC by hand in bfloat16, exact where nothing is rounded, reasons where numbers overflow."""

from __future__ import annotations

import dataclasses
import functools
import math
import pickle
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import few, instance_of
from torch import Tensor, nn

import curvbench as cb
from curvbench import identity, registry, states
from curvbench.cells.measure import Fitted, accuracy_rows, refuse_unsupported
from curvbench.fisher import ExactFisher
from curvbench.meters.cost import Stepper, cost_rows
from curvbench.meters.direction import step_of
from curvbench.operators import Identity
from curvbench.parts.digits import Promoting, in_digits
from curvbench.spec import Cell, Diverged, Follows, Row, Unsupported, Weighs

NAMES = sorted(registry.probes())
SAMPLES, DAMPING = 12, 1e-2
TARGETS = torch.arange(SAMPLES) % 4


def network(scale: float = 1.0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 4))
    model[0].weight.data.mul_(scale)
    return model


def inputs() -> Tensor:
    return torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(1))


def instance(dtype: torch.dtype = torch.float32, scale: float = 1.0) -> cb.Instance:
    return cb.Instance(network(scale).to(dtype), inputs().to(dtype), TARGETS)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def factors_by_hand(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """B and A of both layers: passes and products in ``dtype``, softmax and its factor in float32 at least."""
    first, _, last = network().to(dtype)
    x = inputs().to(dtype)
    before = first(x)
    hidden = before.relu()
    outputs = last(hidden).detach()
    p = torch.softmax(outputs.float() if dtype.itemsize < 4 else outputs, -1)
    roots = torch.linalg.cholesky_ex(torch.diag_embed(p) - p[:, :, None] * p[:, None, :])[0][..., :-1]
    slopes = [roots[..., r].to(dtype) for r in range(roots.shape[-1])]
    behind = [torch.autograd.grad(last(hidden), before, slope, retain_graph=True)[0] for slope in slopes]
    ones = x.new_ones(SAMPLES, 1)
    a = [torch.cat([values.detach(), ones], 1) for values in (x, hidden)]
    squares = [torch.stack([G.T @ G for G in values]) for values in (behind, slopes)]
    sums = [square[0] + square[1] + square[2] for square in squares]  # of one label after the other, rounded each
    return [(B / SAMPLES, A.T @ A / SAMPLES) for B, A in zip(sums, a, strict=True)]


def dense(factors: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.block_diag(*(torch.kron(B.double(), A.double()) for B, A in factors))


def test_kfac_in_bfloat16_is_that_of_a_network_in_bfloat16_by_hand() -> None:
    found = instance()
    probe = cb.probe("kfac", statistics_dtype="bfloat16", factor_dtype="float32", damping=DAMPING)
    by_hand, exact = dense(factors_by_hand(torch.bfloat16)), dense(factors_by_hand(torch.float64))
    operator = cb.fit(probe, found).to_dense()
    assert operator.dtype == torch.float32
    assert 2**-10 <= distance(by_hand, exact) <= 2**-5, "the error of bfloat16 is about 2^-8"
    assert distance(operator, by_hand) <= 0.1 * distance(by_hand, exact)
    rounded = torch.block_diag(*(torch.kron(B.float(), A.float()) for B, A in factors_by_hand(torch.bfloat16)))
    damped = rounded + DAMPING * torch.eye(len(rounded))
    step = step_of(probe, found, found.gradient())
    assert distance(step, torch.linalg.solve(damped.double(), found.gradient().double())) <= 2**-8


@pytest.mark.parametrize("name", ["kfac", "ekfac", "diag", "unit", "cwngd", "lngd"])
@pytest.mark.parametrize(("dtype", "least", "most"), [("bfloat16", 2**-12, 2**-5), ("float16", 2**-15, 2**-8)])
def test_the_error_is_that_of_the_digits(name: str, dtype: str, least: float, most: float) -> None:
    found = instance(torch.float64)
    operators = [cb.fit(probe, found).to_dense() for probe in (cb.probe(name, statistics_dtype=dtype), cb.probe(name))]
    assert least <= distance(*operators) <= most


@functools.cache
def judged(case: str) -> tuple[cb.Instance, ExactFisher]:
    found = instance_of(case)
    return found, cb.exact_fisher(found)


def rows_of(probe: cb.Probe, found: cb.Instance, fisher: ExactFisher) -> list[Row]:
    refuse_unsupported(probe, found)
    return list(accuracy_rows(Fitted.of(probe, found), fisher))


@pytest.mark.parametrize("name", NAMES)
def test_float64_in_float64_is_the_plain_measurement(name: str) -> None:
    probes = few(name, statistics_dtype="float64", factor_dtype="float64"), few(name)
    rows = [rows_of(probe, *judged("mlp_many_samples")) for probe in probes]
    one, other = ([dataclasses.replace(row, value=None) for row in of_probe] for of_probe in rows)
    assert one == other and len(one) > 10
    # a sum depends by its rounding on where its numbers lie in memory
    values = [[math.nan if row.value is None else row.value for row in of_probe] for of_probe in rows]
    assert values[0] == pytest.approx(values[1], rel=1e-9, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("name", ["kfac", "adam"])
def test_float64_in_float64_costs_what_the_plain_probe_costs(name: str) -> None:
    found = instance(torch.float64)
    steppers = (Stepper(probe, found) for probe in (cb.probe(name, statistics_dtype="float64"), cb.probe(name)))
    flops, plain = (list(cost_rows(stepper, ("flops", "memory"))) for stepper in steppers)
    assert flops == plain


def test_factors_of_float32_take_half_of_the_memory() -> None:
    found, rows = instance(torch.float64), {}
    for dtype in ("float32", "float64"):
        made = cost_rows(Stepper(cb.probe("kfac", factor_dtype=dtype), found), ("memory",))
        rows[dtype] = {
            row.metric: row.value for row in made if row.scope == "statistics" or row.metric == "memory.model"
        }
    for metric in ("memory.state", "memory.model"):
        assert rows["float32"][metric] == rows["float64"][metric] / 2


@pytest.mark.parametrize("name", NAMES)
def test_float64_at_weights_in_float32_is_the_plain_probe_of_these_weights(name: str) -> None:
    narrow, wide = instance(), cb.Instance(network().double(), inputs().double(), TARGETS)
    probe = few(name, statistics_dtype="float64", factor_dtype="float64")
    operator, gradient = cb.fit(probe, narrow), narrow.gradient()
    assert operator.dtype == torch.float32
    assert distance(operator.to_dense(), cb.fit(few(name), wide).to_dense()) <= 1e-6
    assert distance(step_of(probe, narrow, gradient), step_of(few(name), wide, gradient.double())) <= 1e-6


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in NAMES),
    ("lngd", {"layer_rate": "corrected"}),
    ("lngd", {"fisher_type": "lg_mc"}),
    ("fngd", {"stage": "shared"}),
    ("ekfac", {"ema": 0.9, "basis_every": 2}),
    ("hylo", {"variant": "kid_public"}),
    ("shampoo", {"statistic": "bg", "updates": 3}),
]


SWEPT = [("mlp_tanh", "bfloat16"), ("mlp_tanh", "float16"), ("nasty_cnn", "float16"), ("tokens", "bfloat16")]


@pytest.mark.parametrize(("case", "dtype"), SWEPT)
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_every_probe_gives_finite_rows_or_one_line(name: str, options: dict[str, Any], case: str, dtype: str) -> None:
    try:
        rows = rows_of(few(name, statistics_dtype=dtype, factor_dtype="float32", **options), *judged(case))
    except Unsupported as reason:
        assert str(reason) and "\n" not in str(reason)
    except ValueError as reason:
        assert str(reason).startswith(f"with statistics in {dtype}: ") and "\n" not in str(reason)
    else:
        assert {row.metric.partition(".")[0] for row in rows} == {"error", "direction", "health"}
        assert all(row.value is not None or (row.reason and "\n" not in row.reason) for row in rows)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_has_the_dtype_of_its_factors(name: str) -> None:
    damping = {} if cb.probe(name).damping is None else {"damping": 0.1}
    probe, found = few(name, statistics_dtype="bfloat16", factor_dtype="float64", **damping), instance()
    state = probe.update(probe.init(found), found)
    assert {t.dtype for t in states.tensors(state) if t.is_floating_point()} <= {torch.float64}
    step = probe.precondition(probe.refresh(state), found.gradient())
    assert step.dtype == torch.float32 == probe.operator(state).dtype


@pytest.mark.parametrize("name", ["kfac", "ekfac", "shampoo", "unit"])
def test_factors_in_float32_of_statistics_in_float64_are_rounded_once(name: str) -> None:
    found = instance(torch.float64)
    operators = [cb.fit(cb.probe(name, factor_dtype=dtype), found).to_dense() for dtype in ("float32", "float64")]
    assert 1e-10 <= distance(*operators) <= 1e-5


@pytest.mark.parametrize("scale", [1e5, 3e8])
def test_an_overflow_names_the_layer(scale: float) -> None:
    """Weights that float16 cannot hold, and outputs that it cannot hold; bfloat16 holds both."""
    found = instance(scale=scale)
    for name in ("kfac", "adam", "lngd", "ekfac"):
        with pytest.raises(Diverged, match=r"^float16 overflows at layer '0': its (weights|outputs) are not finite$"):
            cb.probe(name, statistics_dtype="float16").fit(found)
    assert cb.fit(cb.probe("diag", statistics_dtype="bfloat16"), found).diagonal().isfinite().all()


@pytest.mark.parametrize("name", ["kfac", "ekfac", "lngd", "unit", "cwngd", "tkfac"])
def test_statistics_that_overflow_name_the_layer(name: str) -> None:
    """Inputs of 3,000 are numbers of float16, the sum of their squares is none; LNGD divides by such a sum."""
    model, x = network(1e-3), inputs()
    x[:, 0] = 3000
    found = cb.Instance(model, x, TARGETS)
    with pytest.raises(Diverged, match="float16 overflows at layer '0': its statistics are not finite"):
        cb.probe(name, statistics_dtype="float16").fit(found)
    assert cb.fit(cb.probe(name, statistics_dtype="bfloat16"), found).to_dense().isfinite().all()


class OfFloat32(nn.Module):
    """A model with a constant in float32, as many models have."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.float())


def test_a_model_that_has_no_such_pass_is_unsupported_in_one_line() -> None:
    found = cb.Instance(OfFloat32(), inputs(), TARGETS)
    reason = cb.probe("kfac", statistics_dtype="bfloat16").unsupported(found)
    assert reason is not None and reason.startswith("the model does not run in bfloat16: ") and "\n" not in reason


def test_tf32_needs_cuda() -> None:
    with pytest.raises(Unsupported, match="statistics_dtype=tf32 needs a CUDA device: cpu has no TF32"):
        cb.fit(cb.probe("kfac", statistics_dtype="tf32"), instance())


def test_the_axis_is_read_and_written_like_every_hyperparameter() -> None:
    text = "kfac[damping_rule=pi,statistics_dtype=bfloat16,factor_dtype=float32]"
    probe = registry.parse_probe(text)
    assert probe.label == text == registry.selector(probe) and probe.name == "kfac"
    assert probe == cb.probe("kfac", damping_rule="pi", statistics_dtype="bfloat16", factor_dtype="float32")
    assert pickle.loads(pickle.dumps(probe)) == probe and replace(probe, damping=0.1).damping == 0.1
    assert registry.parse_probe("kfac[statistics_dtype=none]") == cb.probe("kfac")
    assert type(registry.parse_probe("kfac[statistics_dtype=none]")) is type(cb.probe("kfac"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("kfac[statistics_dtype=float8]", "statistics_dtype must be one of bfloat16, float16, float32, float64, tf32"),
        ("kfac[factor_dtype=bfloat16]", "factor_dtype must be one of float32, float64, none"),
    ],
)
def test_another_dtype_is_refused_in_one_line(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        registry.parse_probe(text)


def test_the_axis_changes_the_identity_only_where_it_is_used() -> None:
    environment = {"torch_version": "2", "device_name": "cpu"}
    cells = [
        Cell("s", cb.problem("mlp"), registry.parse_probe(text), 0) for text in ("kfac", "kfac[factor_dtype=none]")
    ]
    assert identity.cell_id(cells[0], environment) == identity.cell_id(cells[1], environment)
    assert "factor_dtype" not in identity.component(cells[0].probe)["hyperparameters"]
    other = replace(cells[0], probe=cb.probe("kfac", factor_dtype="float64"))
    assert identity.cell_id(other, environment) != identity.cell_id(cells[0], environment)


@dataclass(frozen=True)
class Stateless(cb.Probe):
    """A user's probe that keeps nothing."""

    kind: str = "none"

    def update(self, state: None, batch: cb.Instance) -> None:
        assert batch.dtype == torch.bfloat16

    def precondition(self, state: None, gradient: Tensor) -> Tensor:
        assert gradient.dtype == torch.float64
        return gradient

    def operator(self, state: None) -> Identity:
        return Identity(81, torch.bfloat16)


def test_a_probe_of_a_user_that_keeps_no_state() -> None:
    probe, found = in_digits(Stateless)(statistics_dtype="bfloat16", factor_dtype="float64"), instance()
    assert probe.label == "Stateless[statistics_dtype=bfloat16,factor_dtype=float64]"
    assert cb.fit(probe, found).dtype == torch.float32 == step_of(probe, found, found.gradient()).dtype
    assert pickle.loads(pickle.dumps(probe)) == probe


def test_mix_ins_stay() -> None:
    assert isinstance(cb.probe("lngd", statistics_dtype="bfloat16", layer_rate="corrected"), Follows)
    assert isinstance(cb.probe("fngd", statistics_dtype="bfloat16"), Weighs)
    assert not isinstance(cb.probe("kfac", statistics_dtype="bfloat16"), Follows | Weighs)


@pytest.mark.parametrize(
    ("name", "options"),
    [("kfac", {}), ("lngd", {"layer_rate": "corrected"}), ("fngd", {"stage": "shared"}), ("adam", {})],
)
def test_training_in_other_digits_follows_the_plain_one(name: str, options: dict[str, Any]) -> None:
    ends = []
    for digits in ({}, {"statistics_dtype": "float64"}, {"statistics_dtype": "bfloat16"}):
        model = network()
        optimizer = cb.NaturalGradient(model, cb.probe(name, **options, **digits), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(optimizer.forward(inputs(), TARGETS), TARGETS).backward()
            optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert distance(ends[1], ends[0]) <= 1e-5
    assert 0 < distance(ends[2], ends[0]) <= 2**-6


def test_products_of_two_dtypes_run_in_the_wider_one() -> None:
    a, b = torch.ones(2, 2, dtype=torch.bfloat16), torch.full((2, 2), 1 / 3, dtype=torch.float64)
    with Promoting(lambda dtype: torch.float64):
        assert torch.equal(a @ b, torch.full((2, 2), 2 / 3, dtype=torch.float64))
        assert torch.einsum("ij,jk", [a, b]).dtype == torch.float64
        assert (a @ a).dtype == torch.bfloat16
        assert torch.linalg.eigh(a)[0].dtype == torch.float64
    with pytest.raises(RuntimeError):
        a @ b
