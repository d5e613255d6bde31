"""Weights and passes of every precision, judged in float64 at the rounded weights by the dense matrices of oracles."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import oracles
import pytest
import torch
import torch.nn.functional as F
from cases import few
from torch import Tensor, nn

import curvbench as cb
from curvbench import registry
from curvbench.fisher import collect, groups
from curvbench.instance.passes import full_precision, tf32
from curvbench.meters.direction import step_of
from curvbench.meters.memory import peak_memory
from curvbench.parts.factors import MomentSum, kfac_factors, second_moment
from curvbench.spec import Diverged

HALVES = [torch.bfloat16, torch.float16]
DTYPES = [*HALVES, torch.float32, torch.float64]
TARGETS = torch.arange(12) % 4
Context = Callable[[], contextlib.AbstractContextManager[Any]]


def autocast() -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


class Autocasting(nn.Module):
    """A model that enters autocast on its own, as many do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with autocast():
            return self.inner(x).to(x.dtype)


class Stubborn(nn.Module):
    """A model whose forward does not follow its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.bfloat16())


def network(dtype: torch.dtype) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 4)).to(dtype)


def batch(dtype: torch.dtype) -> Tensor:
    return torch.randn(12, 6, generator=torch.Generator().manual_seed(1)).to(dtype)


def instance(dtype: torch.dtype) -> cb.Instance:
    return cb.Instance(network(dtype), batch(dtype), TARGETS)


def terms_at(model: nn.Module, inputs: Tensor, targets: Tensor = TARGETS) -> list[oracles.Term]:
    return oracles.loss_terms(model.double(), inputs.double(), targets, "cross_entropy")


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", DTYPES)
def test_fisher_and_gradient_are_those_of_the_rounded_weights(dtype: torch.dtype) -> None:
    found, terms = instance(dtype), terms_at(network(dtype), batch(dtype))
    dense, rounding = oracles.fisher(terms, "cross_entropy", "type-2"), 100 * torch.finfo(found.dtype).eps
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert distance(cb.exact_fisher(found).to_dense(), dense) <= rounding
    assert distance(found.gradient(), oracles.mean_gradient(terms, "cross_entropy")) <= rounding
    values = torch.linalg.eigvalsh(dense).flip(0)
    bound = cb.errors(cb.fit(cb.probe("eigen", rank=5), found), cb.exact_fisher(found))["relative"]
    assert bound == pytest.approx(float(values[5:].norm() / values.norm()), abs=rounding**0.5 * 1e-2)


# Few gradients have a null space: soap divides its rounding by epsilon, klshampoo's basis of it is what rounding makes.
CONDITIONED: dict[str, dict[str, Any]] = {"soap": {"epsilon": 1e-3}, "klshampoo": {"statistic": "columns"}}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", sorted(registry.probes()))
def test_every_probe_is_that_of_the_rounded_weights(name: str, dtype: torch.dtype) -> None:
    probe = few(name, **CONDITIONED.get(name, {}))
    found, exact = instance(dtype), cb.Instance(network(dtype).double(), batch(dtype).double(), TARGETS)
    steps = [step_of(probe, one, one.gradient()) for one in (found, exact)]
    assert steps[0].dtype == torch.float32
    assert distance(steps[0], steps[1]) <= 1e-3
    errors = [cb.errors(cb.fit(probe, one), cb.exact_fisher(one))["relative"] for one in (found, exact)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3, abs=1e-3)
    assert cb.direction_errors(probe, found, damping=1e-2)["cosine"] <= 1 + 1e-6


@pytest.mark.parametrize(
    ("dtype", "context"), [*((h, contextlib.nullcontext) for h in HALVES), (torch.float32, autocast)]
)
@pytest.mark.parametrize("probe", cb.every_probe(), ids=lambda probe: probe.name)
def test_every_probe_trains(probe: cb.Probe, dtype: torch.dtype, context: Context) -> None:
    model, x = network(dtype), batch(dtype)
    optimizer = cb.NaturalGradient(model, probe, lr=1e-3, momentum=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        with context():
            loss = F.cross_entropy(optimizer.forward(x, TARGETS), TARGETS)
        loss.backward()
        with context():
            optimizer.step()
    assert all(p.dtype == dtype and p.isfinite().all() for p in model.parameters())


def test_fngd_weighs_the_samples_of_a_half_precision_pass() -> None:
    model, x = network(torch.bfloat16), batch(torch.bfloat16)
    optimizer = cb.NaturalGradient(model, cb.probe("fngd", stage="shared"), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(optimizer.forward(x, TARGETS), TARGETS).backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in model.parameters())


@pytest.mark.parametrize("dtype", HALVES)
def test_a_step_is_rounded_once(dtype: torch.dtype) -> None:
    """Half a unit in the last place from the float64 step of the gradient that the pass has made."""
    model, x, damping = network(dtype), batch(dtype), 0.1
    optimizer = cb.NaturalGradient(model, cb.probe("full", damping=damping), lr=0.5)
    F.cross_entropy(optimizer.forward(x, TARGETS).float(), TARGETS).backward()
    judge = network(dtype)
    gradients = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    dense = oracles.fisher(terms_at(judge, x), "cross_entropy", "type-2")
    step = oracles.natural_gradient(dense, oracles.pack(judge, gradients), damping)
    expected = oracles.pack(judge, dict(judge.named_parameters())).detach() - 0.5 * step
    optimizer.step()
    found = oracles.pack(model, dict(model.named_parameters())).detach().double()
    assert bool(((found - expected).abs() <= 0.501 * torch.finfo(dtype).eps * expected.abs() + 1e-6).all())


@pytest.mark.parametrize("name", ["kfac", "ekfac", "unit", "diag", "skfac"])
def test_autocast_leaves_the_statistics_as_they_are(name: str) -> None:
    states = []
    for context in (autocast, contextlib.nullcontext):
        model = network(torch.float32)
        optimizer = cb.NaturalGradient(model, cb.probe(name), lr=0.0)
        with context():
            F.cross_entropy(optimizer.forward(batch(torch.float32), TARGETS), TARGETS).backward()
            optimizer.step()
        states.append(optimizer.probe.operator(optimizer._curvature.state).to_dense())
    assert distance(states[0], states[1].double()) <= 1e-6


def test_a_model_that_enters_autocast_is_measured_without_it() -> None:
    inner, x = network(torch.float32), batch(torch.float32)
    found = cb.Instance(Autocasting(inner), x, TARGETS)
    dense = oracles.fisher(terms_at(network(torch.float32), x), "cross_entropy", "type-2")
    for precision in ("native", "mixed", "float64"):
        assert distance(cb.exact_fisher(found, precision=precision).to_dense(), dense) <= 1e-5
    assert cb.errors(cb.fit(cb.probe("full"), found), cb.exact_fisher(found))["relative"] <= 1e-3


def test_no_pass_of_fewer_digits_is_shared_though_its_first_outputs_are_equal() -> None:
    """Behind a head of zeros the outputs of every precision are the same at first."""
    model = Autocasting(network(torch.float32))
    nn.init.zeros_(model.inner[2].weight)
    nn.init.zeros_(model.inner[2].bias)
    optimizer = cb.NaturalGradient(model, cb.probe("kfac"), lr=0.1)
    for _ in range(2):
        F.cross_entropy(optimizer.forward(batch(torch.float32), TARGETS), TARGETS).backward()
        assert optimizer._batch is not None and optimizer._batch[2] is None
        optimizer.step()


def test_measuring_inside_autocast() -> None:
    """The functions of the package leave it; what a probe's own method would round is refused in one line."""
    with autocast():
        found = instance(torch.float32)
        fisher = cb.exact_fisher(found)
        assert cb.errors(cb.fit(cb.probe("full"), found), fisher)["relative"] <= 1e-3
        assert cb.direction_errors(cb.probe("full"), found)["cosine"] >= 0.999
        with pytest.raises(ValueError, match=r"inside torch.autocast\(\).*leave it first"):
            cb.probe("kfac").fit(found)


def test_a_forward_that_does_not_follow_its_weights_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="in float32 without autocast: let its forward follow"):
        cb.Instance(Stubborn(), batch(torch.float32), TARGETS)


@pytest.mark.parametrize("dtype", HALVES)
def test_training_of_half_precision_continues_bit_for_bit(dtype: torch.dtype) -> None:
    def steps(optimizer: cb.NaturalGradient, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            F.cross_entropy(optimizer.forward(batch(dtype), TARGETS), TARGETS).backward()
            optimizer.step()

    straight, resumed = network(dtype), network(dtype)
    options = {"probe": cb.probe("kfac", damping=0.1), "lr": 0.1, "momentum": 0.9}
    first = cb.NaturalGradient(straight, **options)
    steps(first, 2)
    resumed.load_state_dict(straight.state_dict())
    second = cb.NaturalGradient(resumed, **options)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(first, 2)
    steps(second, 2)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize("gap", [60.0, 150.0, 170.0, 300.0, 800.0])
@pytest.mark.parametrize("precision", ["native", "mixed", "float64"])
def test_a_saturated_wrong_sample_leaves_the_natural_gradient_finite_and_right(gap: float, precision: str) -> None:
    model, x, y = network(torch.float32), batch(torch.float32), torch.zeros(12, dtype=torch.int64)
    y[-1] = 1
    with torch.no_grad():
        model[2].bias.copy_(torch.tensor([gap, 0.0, 0.0, 0.0]))
        model[2].weight.mul_(0.3)
    found = cb.Instance(model, x, y)
    gradient = found.gradient()
    step = cb.exact_fisher(found, precision=precision).natural_gradient(gradient, 1e-3)
    dense = oracles.fisher(terms_at(model, x, y), "cross_entropy", "type-2")
    assert distance(step, oracles.natural_gradient(dense, gradient.double(), 1e-3)) <= 1e-5


@pytest.mark.parametrize("damping", [1e-3, 1e-5, 1e-7])
def test_full_and_layer_lose_no_more_than_the_rounding_of_the_gradient(damping: float) -> None:
    """In float32, on the batch's own gradient, whose rounding a solve magnifies by 1 / damping. Woodbury loses more."""
    found = instance(torch.float32)
    gradient, exact = found.gradient(), cb.exact_fisher(found.to(torch.float64))
    fisher = replace(cb.exact_fisher(found, precision="native"), by_columns=True)  # as the methods solve
    for name, blocks, dense in (
        ("full", [fisher], [exact]),
        ("layer", *([f.layer(layer.name) for layer in fisher.layers] for f in (fisher, exact))),
    ):
        parts = gradient.split([block.size for block in blocks])
        solved = [
            oracles.natural_gradient(d.to_dense(), p.double(), damping) for d, p in zip(dense, parts, strict=True)
        ]
        truth = torch.cat(solved)
        rounding = torch.finfo(torch.float32).eps * float(gradient.norm() / (damping * truth.norm()))
        assert distance(step_of(cb.probe(name, damping=damping), found, gradient), truth) <= 3 * rounding, name
        alone = torch.cat([block.solve(part, damping) for block, part in zip(blocks, parts, strict=True)])
        assert damping > 1e-5 or distance(alone, truth) > 3 * rounding, name


@pytest.mark.parametrize("scale", [1e3, 1e10, 1e15])
def test_shampoo_survives_a_large_gradient(scale: float) -> None:
    """Its step has norm 1 or less per direction, however large one gradient was."""
    model, x = network(torch.float32), batch(torch.float32)
    optimizer = cb.NaturalGradient(model, cb.probe("shampoo"), lr=0.01)
    for count in range(4):
        optimizer.zero_grad()
        loss = F.cross_entropy(optimizer.forward(x, TARGETS), TARGETS)
        (loss * (scale if count == 1 else 1.0)).backward()
        optimizer.step()
        assert loss.item() < 3


def test_shampoo_names_a_gradient_whose_square_is_infinite() -> None:
    optimizer = cb.NaturalGradient(model := network(torch.float32), cb.probe("shampoo"))
    (F.cross_entropy(optimizer.forward(batch(torch.float32), TARGETS), TARGETS) * 1e21).backward()
    with pytest.raises(Diverged, match="square is infinite"):
        optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("shape", [(2, 1, 30, 1), (1, 2, 40, 3), (5, 1, 4, 6), (3, 2, 3, 1)])
def test_moments_of_many_cotangents(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum of outer products, by loops; in products of as many rows as the result has, not one each."""
    made = []
    monkeypatch.setattr("curvbench.parts.factors.second_moment", lambda T: made.append(T) or second_moment(T))
    slopes = torch.randn(33, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moment = MomentSum()
    for one in slopes:
        moment.add(one)
    expected = torch.zeros(shape[1], shape[2], shape[2], dtype=torch.float64)
    for one in slopes:
        for sample in one:
            for s in range(shape[3]):
                expected += sample[:, :, s, None] * sample[:, None, :, s]
    assert distance(moment.total(), expected) <= 1e-14
    rows = shape[0] * shape[3]
    assert len(made) == -(-33 // -(-shape[2] // rows))


def test_factors_of_a_thousand_outputs_are_the_curvature_of_the_outputs() -> None:
    model = nn.Linear(3, 300).double()
    found = cb.Instance(nn.Sequential(model), torch.randn(2, 3).double(), torch.tensor([1, 299]))
    p = torch.softmax(found.outputs(), -1)
    expected = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).mean(0)
    assert distance(cb.probe("kfac").fit(found).factors[0].left[0], expected) <= 1e-13
    assert distance(kfac_factors(collect(found, "type-2")[0], 2).left[0], expected) <= 1e-13


@pytest.mark.parametrize("loss", ["gaussian", "cross_entropy"])
def test_columns_in_groups_are_the_columns(loss: str) -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 40)).double()
    targets = torch.randn(3, 40).double() if loss == "gaussian" else torch.tensor([0, 39, 7])
    found = cb.Instance(model, torch.randn(3, 2, 4).double(), targets, loss=loss)
    parts = list(groups(found, "type-2", group_bytes=1))
    assert len(parts) == 3
    for whole, *some in zip(collect(found, "type-2"), *parts, strict=True):
        assert torch.equal(torch.cat([c.slopes for c in some]), whole.slopes)
        assert all(torch.equal(c.inputs, whole.inputs) for c in some)


def test_the_diagonal_never_holds_all_columns() -> None:
    """They would take outputs times the memory of the gradients at the outputs."""
    samples, outputs = 48, 640
    found = cb.Instance(
        nn.Sequential(nn.Linear(4, outputs)), torch.randn(samples, 4), torch.randn(samples, outputs), loss="gaussian"
    )
    peak, _ = peak_memory(lambda: cb.fit(cb.probe("diag"), found), "cpu")
    assert peak < 4 * samples * outputs**2


def roundings() -> tuple[str, ...]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


@pytest.mark.parametrize("wanted", ["highest", "high"])
def test_tf32_is_off_where_numbers_are_made_unless_a_method_asks(wanted: str) -> None:
    """Torch rounds convolutions on its own, and products where ``set_float32_matmul_precision`` says so."""
    seen: list[tuple[str, ...]] = []

    class Seeing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(roundings())
            return super().forward(x)

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(wanted)
    try:
        outside = roundings()
        instance = cb.Instance(Seeing(6, 4), torch.randn(12, 6), TARGETS)
        cb.errors(cb.fit(cb.probe("kfac"), instance), cb.exact_fisher(instance))
        assert set(seen) == {("ieee", "ieee")}
        with tf32(True), full_precision():
            assert roundings() == ("tf32", "tf32")
            with tf32(False):
                assert roundings() == ("ieee", "ieee")
        assert roundings() == outside != ("ieee", "ieee")
    finally:
        torch.set_float32_matmul_precision(before)
