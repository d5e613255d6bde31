"""The quality of directions against dense matrices, and what it promises of any step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import oracles
import pytest
import torch
from cases import Case, Truth, fisher_of, instance_of, truth
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import curvbench as cb
from curvbench.fisher.stream import Source
from curvbench.meters.direction import Judged, direction_rows, how_damped, judge, step_of, with_damping
from curvbench.registry import parse_probe
from curvbench.spec import Precision, Row, Status

FEW = settings(max_examples=30, deadline=None)
SMALL = "mlp_tanh"


def share(p: Tensor, g: Tensor, C: Tensor) -> tuple[float, float]:
    """Quality and best length of a step in the metric of a dense matrix; NaN where one of them is nothing."""
    if not (p.any() and g.any()):
        return math.nan, math.nan
    along, curved, best = float(g @ p), float(p @ C @ p), float(g @ torch.linalg.solve(C, g))
    return math.copysign(along**2 / (curved * best), along), along / curved


def share_with_rates(p: Tensor, g: Tensor, C: Tensor, sizes: list[int]) -> float:
    """The same of the best combination of the layers' parts of a step, from the normal equations of that subspace."""
    parts = torch.block_diag(*(part[:, None] for part in p.split(sizes)))
    parts = parts[:, parts.any(0)]
    b = parts.T @ g
    return float(b @ torch.linalg.solve(parts.T @ C @ parts, b) / (g @ torch.linalg.solve(C, g)))


def closed(quality: float, least: float, most: float) -> float:
    return (quality - least) / (most - least) if most - least >= 1e-3 else math.nan


def dense(p: Tensor, judge: Truth, damping: float) -> list[dict[str, float]]:
    """Network, layer blocks, and each layer."""
    F, g, sizes = judge.fisher(), judge.gradient, oracles.layer_sizes(judge.model)
    eye = damping * torch.eye(len(F), dtype=F.dtype)
    network, blocks = F + eye, oracles.keep(F, sizes) + eye
    layerwise = torch.linalg.solve(blocks, g)
    found = []
    for C, most in ((network, share(layerwise, g, network)[0]), (blocks, 1.0)):
        quality, length = share(p, g, C)
        values = {"quality": quality, "length": length, "quality_rates": share_with_rates(p, g, C, sizes)}
        found.append(values | {"gap_closed": closed(quality, share(g, g, C)[0], most)})
    for part in (
        slice(end - size, end) for end, size in zip(torch.tensor(sizes).cumsum(0).tolist(), sizes, strict=True)
    ):
        quality, length = share(p[part], g[part], blocks[part, part])
        gap = closed(quality, share(g[part], g[part], blocks[part, part])[0], 1.0)
        found.append({"quality": quality, "length": length, "gap_closed": gap})
    return found


def judged(p: Tensor, name: str = SMALL, damping: float = 1e-3) -> list[Judged]:
    return judge(p, fisher_of(name), truth(name).gradient, damping)


def of_network(p: Tensor, damping: float = 1e-3) -> dict[str, float]:
    return judged(p, damping=damping)[0].values


def steps(name: str) -> dict[str, Tensor]:
    """Steps of different kinds: the gradient, K-FAC's, that of layer blocks, and anything at all."""
    instance = instance_of(name)
    gradient = instance.gradient()
    own = {probe: step_of(cb.probe(probe), instance, gradient) for probe in ("kfac", "layer")}
    return {"gradient": gradient, "random": torch.randn_like(gradient), **own}


@pytest.mark.parametrize("share_of_largest", [1e-3, 1.0])
def test_every_scope_against_dense_matrices(case: Case, judge: Truth, share_of_largest: float) -> None:
    """In units of the largest eigenvalue, so that a dense solve has the digits to compare with."""
    damping = share_of_largest * float(torch.linalg.eigvalsh(judge.fisher())[-1])
    for kind, p in steps(case.name).items():
        scopes = judged(p, case.name, damping)
        expected = dense(p, judge, damping)
        assert len(scopes) == len(expected)
        for one, values in zip(scopes, expected, strict=True):
            for name, value in values.items():
                scale = abs(value) if name == "length" else 1.0
                close = pytest.approx(value, abs=1e-8 * scale + 1e-12, rel=1e-8, nan_ok=True)
                assert one.values[name] == close, (kind, one.scope, name)


def test_the_exact_step_has_quality_one_and_length_one(case: Case, judge: Truth) -> None:
    damping = 1e-2 * float(torch.linalg.eigvalsh(judge.fisher())[-1])
    metrics = cb.direction_errors(cb.probe("full"), instance_of(case.name), damping)
    assert metrics["quality"] == pytest.approx(1, abs=1e-10)
    assert metrics["quality_rates"] == pytest.approx(1, abs=1e-10)
    assert metrics["length"] == pytest.approx(1, abs=1e-8)


def test_exact_layer_blocks_close_the_gap(case: Case, judge: Truth) -> None:
    damping = 1e-2 * float(torch.linalg.eigvalsh(judge.fisher())[-1])
    step = step_of(cb.probe("layer", damping=damping), instance_of(case.name), judge.gradient)
    network, blocks, *layers = judged(step, case.name, damping)
    known = {name: [one.values[name] for one in (blocks, *layers)] for name in ("quality", "gap_closed")}
    known["gap_closed"].append(network.values["gap_closed"])
    for values in known.values():
        defined = [value for value in values if not math.isnan(value)]
        assert defined == pytest.approx([1.0] * len(defined), abs=1e-6)
    assert not math.isnan(blocks.values["quality"])


def test_rates_per_layer_repair_steps_that_differ_by_them_alone() -> None:
    gradient, sizes = truth(SMALL).gradient, oracles.layer_sizes(truth(SMALL).model)
    rates = torch.cat([torch.full((size,), (-3.0) ** k) for k, size in enumerate(sizes)]).double()
    plain, rated = of_network(gradient), of_network(rates * gradient)
    assert rated["quality_rates"] == pytest.approx(plain["quality_rates"], abs=1e-12)
    assert abs(rated["quality"] - plain["quality"]) > 1e-3


ALIGNED = 1e-12  # on some processors a sum's rounding depends on where its numbers lie in memory


@FEW
@given(st.integers(0, 10**6), st.integers(-900, 900))
def test_a_positive_factor_changes_the_length_alone(seed: int, exponent: int) -> None:
    """Also one that takes squares beyond the numbers there are."""
    p = torch.randn(truth(SMALL).size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    scopes, scaled = judged(p), judged(p * 2.0**exponent)
    for one, other in zip(scopes, scaled, strict=True):
        for name in ("quality", "gap_closed"):
            assert one.values[name] == pytest.approx(other.values[name], rel=ALIGNED)
        assert other.values["length"] * 2.0**exponent == pytest.approx(one.values["length"], rel=1e-14)
    for name in ("quality_rates", "cosine"):
        assert scopes[0].values[name] == pytest.approx(scaled[0].values[name], rel=ALIGNED)


@FEW
@given(st.integers(0, 10**6), st.floats(1e-4, 1e2))
def test_what_holds_for_any_step(seed: int, damping: float) -> None:
    p = torch.randn(truth(SMALL).size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for one, back in zip(judged(p, damping=damping), judged(-p, damping=damping), strict=True):
        values = one.values
        assert -1 <= values["quality"] <= 1 and math.copysign(1, values["length"]) == math.copysign(
            1, values["quality"]
        )
        for name in ("quality", "length"):
            assert back.values[name] == pytest.approx(-values[name], rel=ALIGNED)
        if "quality_rates" in values:
            assert values["quality_rates"] >= abs(values["quality"]) - 1e-12
        if "decrease" in values:  # s19: at the length that the step has
            expected = abs(values["quality"]) * (1 - (1 / values["length"] - 1) ** 2)
            assert values["decrease"] == pytest.approx(expected, rel=1e-8, abs=1e-12)


def test_no_length_decreases_more_than_the_best_one() -> None:
    p = step_of(cb.probe("kfac"), instance_of(SMALL), truth(SMALL).gradient)
    for scope in (0, 1):
        values = judged(p)[scope].values
        decreases = [judged(c * values["length"] * p)[scope].values["decrease"] for c in (0.9, 1.0, 1.1)]
        assert max(decreases) == decreases[1] == pytest.approx(values["quality"], rel=1e-9)


def test_control_the_decrease_ranks_lengths() -> None:
    """A worse direction of the right length is before a better one, whose learning rate would find it."""
    gradient = truth(SMALL).gradient
    good, poor = step_of(cb.probe("kfac"), instance_of(SMALL), gradient), gradient
    long, right = of_network(1e3 * good), of_network(of_network(poor)["length"] * poor)
    assert long["quality"] > right["quality"] and long["decrease"] < right["decrease"]


def test_reference_of_drawn_labels_has_layer_blocks_of_its_own() -> None:
    drawn, gradient = fisher_of(SMALL, "mc"), truth(SMALL).gradient
    F, sizes = drawn.to_dense(), oracles.layer_sizes(truth(SMALL).model)
    eye = 1e-2 * torch.eye(len(F), dtype=F.dtype)
    scopes = judge(gradient, drawn, gradient, 1e-2)
    assert scopes[0].values["quality"] == pytest.approx(share(gradient, gradient, F + eye)[0], rel=1e-8)
    assert scopes[1].values["quality"] == pytest.approx(
        share(gradient, gradient, oracles.keep(F, sizes) + eye)[0], rel=1e-8
    )


@pytest.mark.parametrize(("precision", "digits"), [("mixed", 2e-4), ("float64", 1e-5)])
def test_single_precision_has_the_digits_that_it_can_have(precision: Precision, digits: float) -> None:
    instance = instance_of(SMALL).to(torch.float32)
    p = step_of(cb.probe("kfac"), instance, instance.gradient())
    scopes = judge(p, cb.exact_fisher(instance, precision=precision), instance.gradient(), 1e-2)[0].values
    expected = dense(p.double(), truth(SMALL), 1e-2)[0]
    for name in ("quality", "quality_rates", "gap_closed"):
        assert scopes[name] == pytest.approx(expected[name], abs=digits)


def test_a_streamed_fisher_is_passed_over_five_times(monkeypatch: pytest.MonkeyPatch) -> None:
    instance, whole = instance_of("nasty_cnn"), fisher_of("nasty_cnn")
    streamed = cb.exact_fisher(instance, memory=1)
    streamed.restore(whole.cache())
    gradient, made = instance.gradient(), []
    collect = Source.collect
    monkeypatch.setattr(Source, "collect", lambda self, *a, **k: made.append(1) or collect(self, *a, **k))
    p = torch.randn_like(gradient)
    scopes = judge(p, streamed, gradient, 1e-2)
    assert len(made) <= 5 * len(instance.layers)
    for one, other in zip(scopes, judge(p, whole, gradient, 1e-2), strict=True):
        assert one.values == pytest.approx(other.values, rel=1e-9, abs=1e-12, nan_ok=True)


def rows(step: Tensor, gradient: Tensor, name: str = SMALL) -> list[Row]:
    return list(direction_rows(step, fisher_of(name), gradient, 1e-3))


def test_rows_have_every_metric_where_it_means_something() -> None:
    layers = [layer.name for layer in instance_of(SMALL).layers]
    measured = rows(torch.randn_like(truth(SMALL).gradient), truth(SMALL).gradient)
    assert {row.status for row in measured} == {Status.OK} and {row.method for row in measured} == {"damping 0.001"}
    where: dict[str, list[str]] = {}
    for row in measured:
        where.setdefault(row.metric.removeprefix("direction."), []).append(row.scope)
    wholes = ["network", "layer blocks"]
    for name in ("cosine", "relative", "decrease", "quality_rates"):
        assert where.pop(name) == wholes
    for name in ("quality", "length", "gap_closed"):
        assert where.pop(name) == [*wholes, *layers]
    assert where == {"gradient": ["network", *layers]}


FLAWS = {
    "NaN": (math.nan, "the step is NaN in 1 of "),
    "infinity": (math.inf, "the step is infinite in 1 of "),
    "minus infinity": (-math.inf, "the step is infinite in 1 of "),
}


@pytest.mark.parametrize(("value", "reason"), FLAWS.values(), ids=FLAWS)
def test_a_step_that_is_not_finite_is_an_error_that_says_so(value: float, reason: str) -> None:
    step, gradient = truth(SMALL).gradient.clone(), truth(SMALL).gradient
    step[3] = value
    measured = rows(step, gradient)
    assert {row.metric for row in measured} == {row.metric for row in rows(gradient, gradient)}
    assert {(row.status, row.value) for row in measured} == {(Status.ERROR, None)}
    assert all(row.reason.startswith(reason) for row in measured)
    with pytest.raises(ValueError, match=reason):
        judged(step)


def test_nothing_to_step_along_and_no_step_are_two_reasons() -> None:
    gradient = truth(SMALL).gradient
    nothing = torch.zeros_like(gradient)
    for step, slope, reason, defined in (
        (nothing, gradient, "the step is zero here", {"relative", "decrease"}),
        (gradient, nothing, "the gradient is zero here", set()),
        (nothing, nothing, "the gradient is zero here", set()),
    ):
        measured = rows(step, slope)
        assert {row.status for row in measured} == {Status.SKIPPED} | ({Status.OK} if defined else set())
        assert {row.metric.partition(".")[2] for row in measured if row.status is Status.OK} == defined
        assert all(row.reason.startswith(reason) for row in measured if row.status is Status.SKIPPED)


def test_a_layer_without_a_step_is_skipped_alone() -> None:
    gradient, layer = truth(SMALL).gradient, instance_of(SMALL).layers[1]
    step = gradient.clone()
    step[layer.slice] = 0
    skipped = {(row.metric, row.scope): row.reason for row in rows(step, gradient) if row.status is not Status.OK}
    assert set(skipped) == {(f"direction.{n}", layer.name) for n in ("quality", "length", "gap_closed", "gradient")}
    assert all("the step is zero here" in reason for reason in skipped.values())


def test_where_the_gradient_is_the_best_step_there_is_no_gap() -> None:
    """A damping far above the Fisher: all directions but the gradient are worse."""
    gradient = truth(SMALL).gradient
    measured = list(direction_rows(gradient, fisher_of(SMALL), gradient, 1e6))
    skipped = {row.metric for row in measured if row.status is Status.SKIPPED}
    assert skipped == {"direction.gap_closed"}
    assert all("no gap of 0.001" in row.reason for row in measured if row.status is Status.SKIPPED)
    assert all(row.value == pytest.approx(1, abs=1e-5) for row in measured if row.metric == "direction.quality")


def test_a_step_of_another_shape_is_refused_in_one_line() -> None:
    gradient = truth(SMALL).gradient
    for step in (gradient[:-1], gradient[:, None]):
        with pytest.raises(ValueError, match=r"^the step has shape .*, the gradient .*$"):
            judged(step)


@pytest.mark.parametrize("damping", [0.0, -1e-3, math.nan, math.inf])
def test_no_damping_is_refused(damping: float) -> None:
    with pytest.raises(ValueError, match=f"damping of the exact step must be finite and above zero, got {damping}"):
        cb.direction_errors(cb.probe("identity"), instance_of(SMALL), damping)


def test_dampings_of_the_sum_over_the_batch_are_translated() -> None:
    """Whatever the scale of the represented matrix, the step is a multiple of (mean blocks + damping I)^-1 g."""
    instance, judge_ = instance_of("mlp_tanh"), truth("mlp_tanh")
    blocks = oracles.keep(judge_.fisher("empirical"), oracles.unit_sizes(judge_.model))
    expected = oracles.natural_gradient(blocks, judge_.gradient, 0.02)
    for scaling in ("sum", "mean"):
        for score_scale in ("per_sample", "divided_by_N"):
            probe = cb.probe("cwngd", scaling=scaling, score_scale=score_scale, damping=3.0)
            step = step_of(with_damping(probe, 0.02, instance.terms), instance, judge_.gradient)
            cosine = float(step @ expected / (step.norm() * expected.norm()))
            assert cosine == pytest.approx(1, abs=1e-9)


@dataclass(frozen=True)
class Summed(cb.FisherProbe):
    """A user's probe whose damping is of a sum."""

    def damping_unit(self, terms: int) -> float:
        return terms

    def update(self, state: Any, batch: cb.Instance) -> cb.Instance:
        return batch

    def precondition(self, state: Any, gradient: Tensor) -> Tensor:
        fisher = cb.exact_fisher(state)
        return fisher.natural_gradient(gradient, self.damping / state.terms) / state.terms

    def operator(self, state: Any) -> Any:
        return cb.exact_fisher(state)


def test_a_method_of_ones_own_says_its_unit() -> None:
    assert cb.direction_errors(Summed(), instance_of(SMALL), 0.05)["quality"] == pytest.approx(1, abs=1e-9)


HOW = {
    "kfac": "",
    "kfac[damping=0.5]": "",
    "hylo": "",
    "cwngd": "as the probe's damping=0.02",
    "cwngd[scaling=mean]": "",
    "identity": "own damping (none: ",
    "adam": "own damping (epsilon ",
    "lngd": "own damping (per factor: ",
    "fngd": "own damping (per layer ",
    "qng": "own damping (none ",
}


@pytest.mark.parametrize(("label", "words"), HOW.items(), ids=HOW)
def test_rows_say_what_was_run(label: str, words: str) -> None:
    probe = parse_probe(label)
    text = how_damped(probe, 1e-3, 20)
    assert text.startswith(words) and bool(text) == bool(words)
    assert (with_damping(probe, 1e-3, 20) == probe) == (words.startswith("own") or label in ("kfac", "hylo"))


def test_whatever_the_probe_does_to_the_gradient_the_judge_has_its_own() -> None:
    @dataclass(frozen=True)
    class Doubling(Summed):
        def precondition(self, state: Any, gradient: Tensor) -> Tensor:
            return gradient.mul_(2)

    instance = instance_of(SMALL)
    metrics, plain = (cb.direction_errors(probe, instance) for probe in (Doubling(), cb.probe("identity")))
    assert (metrics["quality"], metrics["length"]) == (plain["quality"], plain["length"] / 2)
