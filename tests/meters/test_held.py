"""Statistics held elsewhere, against dense matrices of the other samples and of the later weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import oracles
import pytest
import torch
from cases import CASES, instance_of, weights_of
from torch import Tensor

import curvbench as cb
from curvbench.meters.cost import Stepper, flop_rows
from curvbench.meters.direction import best_products, judge, step_qualities
from curvbench.meters.error import BLOCKS, NETWORK
from curvbench.meters.held import Frozen, Held, restored, unbiased_square, yardstick
from curvbench.meters.population import population_rows
from curvbench.meters.staleness import cost_rows, staleness_rows
from curvbench.operators import Diagonal
from curvbench.registry import parse_probe
from curvbench.spec import Row, Status

DAMPING = 0.05
NAMES = ("mlp_tanh", "nasty_cnn", "tokens", "mlp_gaussian")


class Pair:
    """Some samples of a case and its other samples: instances, and their dense matrices and gradients by the oracle."""

    def __init__(self, name: str) -> None:
        case = CASES[name]
        self.model, inputs, targets = case.build()
        half = len(inputs) // 2
        self.loss = case.loss
        self.fitted, self.others = (
            (x, y) for x, y in ((inputs[:half], targets[:half]), (inputs[half:], targets[half:]))
        )
        self.terms, self.other_terms = (
            oracles.loss_terms(self.model, *part, self.loss) for part in (self.fitted, self.others)
        )
        self.sizes = oracles.layer_sizes(self.model)

    @property
    def F_A(self) -> Tensor:
        return oracles.type2_fisher(self.terms, self.loss)

    @property
    def F_B(self) -> Tensor:
        return oracles.type2_fisher(self.other_terms, self.loss)

    @property
    def gradient(self) -> Tensor:
        return oracles.mean_gradient(self.other_terms, self.loss)

    def instances(self) -> tuple[cb.Instance, cb.Instance]:
        return weights_of(self.model, *self.fitted, self.loss), weights_of(self.model, *self.others, self.loss)

    def held(self) -> Held:
        fitted, others = self.instances()
        numbers = yardstick(others, cb.exact_fisher(others), cb.exact_fisher(fitted), DAMPING)
        return Held(others, restored(cb.exact_fisher(others), numbers), numbers)

    def rows(self, probe: cb.Probe) -> dict[tuple[str, str], Row]:
        fitted, _ = self.instances()
        frozen = Frozen.of(probe, fitted, probe.fit(fitted), DAMPING)
        return {(row.metric, row.scope): row for row in population_rows(frozen, self.held(), DAMPING)}


def quality(step: Tensor, matrix: Tensor, gradient: Tensor) -> float:
    damped = matrix + DAMPING * torch.eye(len(matrix), dtype=matrix.dtype)
    best = gradient @ torch.linalg.solve(damped, gradient)
    along = gradient @ step
    return float(along.sign() * along**2 / (step @ damped @ step) / best)


MATRICES: dict[str, Callable[[Pair], Tensor]] = {
    "identity": lambda pair: torch.eye(sum(pair.sizes), dtype=torch.float64),
    "diag": lambda pair: torch.diag(pair.F_A.diagonal()),
    "layer": lambda pair: oracles.keep(pair.F_A, pair.sizes),
    "full": lambda pair: pair.F_A,
    "full[fisher_type=empirical]": lambda pair: oracles.empirical_fisher(pair.terms, pair.loss),
    "kfac": lambda pair: oracles.kfac(oracles.layer_factors(pair.model, *pair.fitted, pair.loss)),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("label", MATRICES)
def test_errors_and_quality_are_those_of_dense_matrices(name: str, label: str) -> None:
    pair = Pair(name)
    rows, matrix = pair.rows(parse_probe(label)), MATRICES[label](pair)
    steps = {"identity": pair.gradient}
    step = steps.get(label, oracles.natural_gradient(matrix, pair.gradient, DAMPING))
    for scope, keep in ((NETWORK, lambda m: m), (BLOCKS, lambda m: oracles.keep(m, pair.sizes))):
        F_A, F_B, approximation = map(keep, (pair.F_A, pair.F_B, matrix))
        expected = oracles.relative(approximation, F_B)
        assert rows["error.population", scope].value == pytest.approx(expected, rel=1e-7)
        assert rows["error.floor", scope].value == pytest.approx(oracles.relative(F_A, F_B), rel=1e-7)
        best = quality(step, F_B, pair.gradient)
        assert rows["direction.population", scope].value == pytest.approx(best, rel=1e-7)
    assert rows["error.population", NETWORK].value != pytest.approx(oracles.relative(matrix, pair.F_A), rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_unbiased_error_leaves_out_products_of_a_sample_with_itself(name: str) -> None:
    """|F_pop|^2 is the mean of <f_n, f_m> over pairs of different samples, written as these pairs."""
    pair = Pair(name)
    N = len(pair.others[0])
    each = oracles.sample_fishers(pair.other_terms, pair.loss, N) * N / len(pair.other_terms)
    matrix = MATRICES["kfac"](pair)
    rows = pair.rows(cb.probe("kfac"))
    for scope, keep in ((NETWORK, lambda m: m), (BLOCKS, lambda m: oracles.keep(m, pair.sizes))):
        fs = [keep(f) for f in each]
        pairs = [float((fs[n] * fs[m]).sum()) for n in range(N) for m in range(N) if n != m]
        square = sum(pairs) / len(pairs)
        difference = float(keep(matrix).square().sum() - 2 * (keep(matrix) * keep(pair.F_B)).sum()) + square
        expected = abs(difference / square) ** 0.5 * (1 if difference > 0 else -1)
        assert rows["error.unbiased", scope].value == pytest.approx(expected, rel=1e-7)


def test_the_unbiased_square_has_the_mean_of_the_population() -> None:
    """The mean over all batches of four of eight samples is that over pairs of the eight."""
    instance = instance_of("mlp_tanh")
    few = [unbiased_square(cb.exact_fisher(part), 4) for part in (instance.draw(4, seed) for seed in range(200))]
    whole = unbiased_square(cb.exact_fisher(instance), instance.samples)
    few_t = torch.tensor(few)
    assert abs(float(few_t.mean()) - whole) <= 4 * float(few_t.std()) / len(few) ** 0.5
    naive = torch.tensor([cb.exact_fisher(instance.draw(4, seed)).frobenius_norm() ** 2 for seed in range(200)])
    assert float(naive.mean()) - whole > 4 * float(naive.std()) / len(naive) ** 0.5, "the control"


def test_a_single_sample_has_no_unbiased_error() -> None:
    pair = Pair("mlp_tanh")
    pair.others = tuple(part[:1] for part in pair.others)
    row = pair.rows(cb.probe("kfac"))["error.unbiased", NETWORK]
    assert row.status is Status.SKIPPED and row.value is None and "population" in row.reason


def test_drawn_labels_are_held_as_they_were_drawn() -> None:
    pair = Pair("mlp_tanh")
    probe = cb.probe("layer", fisher_type="mc", mc_samples=3, seed=7)
    dense = cb.fit(probe, pair.instances()[0]).to_dense()
    assert pair.rows(probe)["error.population", NETWORK].value == pytest.approx(
        oracles.relative(dense, pair.F_B), rel=1e-7
    )


# --- later weights -----------------------------------------------------------------------------------------


def moved(model: torch.nn.Module, size: float) -> torch.nn.Module:
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return other


@pytest.mark.parametrize("label", ["diag", "kfac", "full"])
def test_staleness_is_that_of_dense_matrices(label: str) -> None:
    pair = Pair("mlp_tanh")
    fitted, _ = pair.instances()
    later = moved(pair.model, 0.1)
    instance = weights_of(later, *pair.fitted)
    numbers = yardstick(instance, cb.exact_fisher(instance), cb.exact_fisher(fitted), DAMPING)
    probe = cb.probe(label)
    frozen = Frozen.of(probe, fitted, probe.fit(fitted), DAMPING)
    held = Held(instance, restored(cb.exact_fisher(instance), numbers), numbers)
    rows = {(row.metric, row.scope): row for row in staleness_rows(frozen, [(3, held)], DAMPING)}
    terms = oracles.loss_terms(later, *pair.fitted, pair.loss)
    F_k, g_k = oracles.type2_fisher(terms, pair.loss), oracles.mean_gradient(terms, pair.loss)
    matrix = MATRICES[label](pair)
    step = oracles.natural_gradient(matrix, g_k, DAMPING)
    for scope, keep in ((NETWORK, lambda m: m), (BLOCKS, lambda m: oracles.keep(m, pair.sizes))):
        place = f"{scope}, age 3"
        assert rows["stale.error", place].step == 3
        assert rows["stale.error", place].value == pytest.approx(oracles.relative(keep(matrix), keep(F_k)), rel=1e-7)
        assert rows["stale.floor", place].value == pytest.approx(oracles.relative(keep(pair.F_A), keep(F_k)), rel=1e-7)
        assert rows["stale.quality", place].value == pytest.approx(quality(step, keep(F_k), g_k), rel=1e-7)


@pytest.mark.parametrize("label", ["identity", "diag", "kfac", "ekfac", "lngd[layer_rate=corrected]", "ginger", "full"])
def test_at_age_0_everything_is_fresh(label: str) -> None:
    instance = instance_of("nasty_cnn")
    fisher, probe = cb.exact_fisher(instance), parse_probe(label)
    numbers = yardstick(instance, fisher, fisher, DAMPING)
    frozen = Frozen.of(probe, instance, probe.fit(instance), DAMPING)
    held = Held(instance, fisher, numbers)
    rows = {(row.metric, row.scope): row.value for row in staleness_rows(frozen, [(0, held)], DAMPING)}
    assert rows["stale.floor", f"{NETWORK}, age 0"] == rows["stale.floor", f"{BLOCKS}, age 0"] == 0.0
    fresh = cb.errors(cb.fit(probe, instance), fisher)["relative"]
    assert rows["stale.error", f"{NETWORK}, age 0"] == pytest.approx(fresh, rel=1e-9, abs=1e-7)
    expected = cb.direction_errors(probe, instance, DAMPING)["quality"]
    assert rows["stale.quality", f"{NETWORK}, age 0"] == pytest.approx(expected, rel=1e-9)


def test_the_cost_is_that_of_a_refresh_every_k_steps() -> None:
    stepper = Stepper(cb.probe("kfac"), instance_of("mlp_tanh"))
    counted = {row.scope: row.value or 0.0 for row in flop_rows(stepper) if row.metric == "flops.counted"}
    gradient = counted["step"] - counted["statistics"] - counted["invert"] - counted["precondition"]
    values = {row.step: row.value for row in cost_rows(stepper, (0, 1, 10))}
    refresh = counted["statistics"] + counted["invert"]
    for age, interval in ((0, 1), (1, 1), (10, 10)):
        expected = (refresh / interval + counted["precondition"]) / gradient
        assert values[age] == pytest.approx(expected, rel=1e-12)
    assert values[10] < values[1]


def test_what_every_step_needs_of_its_batch_costs_every_step() -> None:
    stepper = Stepper(cb.probe("lngd", layer_rate="corrected"), instance_of("mlp_tanh"))
    plain = Stepper(cb.probe("lngd"), instance_of("mlp_tanh"))
    (row,), (without,) = (list(cost_rows(one, (1000,))) for one in (stepper, plain))
    assert row.value is not None and without.value is not None and row.value - without.value > 0.5


# --- what cannot be held -----------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["adam", "adamw", "sgdm", "fngd[stage=shared]"])
def test_a_step_of_its_own_gradients_alone_is_no_step_for_another(label: str) -> None:
    rows = Pair("mlp_tanh").rows(parse_probe(label))
    row = rows["direction.population", NETWORK]
    assert row.status is Status.UNSUPPORTED and row.value is None and "no other gradient" in row.reason
    assert rows["error.population", NETWORK].value is not None


def test_an_operator_that_is_not_finite_is_an_error_with_its_reason() -> None:
    pair = Pair("mlp_tanh")
    fitted, _ = pair.instances()
    frozen = Frozen.of(cb.probe("diag"), fitted, cb.probe("diag").fit(fitted), DAMPING)
    broken = frozen._replace(operator=Diagonal(torch.full((sum(pair.sizes),), float("nan"))))
    rows = {row.metric: row for row in population_rows(broken, pair.held(), DAMPING)}
    assert rows["error.population"].status is Status.ERROR and "NaN" in rows["error.population"].reason


def test_a_zero_gradient_has_no_quality() -> None:
    model, inputs, _ = CASES["mlp_gaussian"].build()
    instance = weights_of(model, inputs, model(inputs).detach(), "gaussian")
    fisher = cb.exact_fisher(instance)
    numbers = yardstick(instance, fisher, fisher, DAMPING)
    frozen = Frozen.of(cb.probe("diag"), instance, cb.probe("diag").fit(instance), DAMPING)
    rows = [row for row in staleness_rows(frozen, [(0, Held(instance, fisher, numbers))], DAMPING)]
    assert {row.status for row in rows if row.metric == "stale.quality"} == {Status.SKIPPED}


def test_norms_and_traces_of_a_yardstick_spare_the_gram_matrix() -> None:
    held = Pair("mlp_tanh").held()
    fresh = cb.exact_fisher(held.instance)
    for one, other in (
        (held.fisher, fresh),
        *((held.fisher.layer(la.name), fresh.layer(la.name)) for la in fresh.layers),
    ):
        assert (one.trace(), one.frobenius_norm()) == (other.trace(), other.frobenius_norm())
    assert "_gram" not in held.fisher.__dict__ and "layer_grams" not in held.fisher.__dict__


def test_quality_agrees_with_the_judge_in_every_layer() -> None:
    instance = instance_of("nasty_cnn")
    fisher, gradient = cb.exact_fisher(instance), instance.gradient()
    step = cb.fit(cb.probe("diag"), instance).matmat(gradient[:, None])[:, 0]
    expected = [scope.values["quality"] for scope in judge(step, fisher, gradient, DAMPING)]
    bests = best_products(fisher, gradient, DAMPING).tolist()
    assert step_qualities(step, fisher, gradient, DAMPING, bests) == pytest.approx(expected, rel=1e-9)
    assert step_qualities(1e200 * step, fisher, gradient, DAMPING, bests) == pytest.approx(expected, rel=1e-9)


def test_a_damping_of_its_own_is_replaced_by_that_of_the_table() -> None:
    pair = Pair("mlp_tanh")
    one, other = (pair.rows(replace(cb.probe("diag"), damping=d)) for d in (1e-6, 1.0))
    assert one["direction.population", NETWORK].value == other["direction.population", NETWORK].value


@pytest.mark.parametrize("label", ["kfac", "full"])
def test_columns_that_are_made_again_give_the_same_rows(label: str) -> None:
    """A Fisher that is streamed, because its columns do not fit, has one segment per layer here."""
    pair, probe = Pair("nasty_cnn"), cb.probe(label)
    fitted, others = pair.instances()
    streamed = cb.exact_fisher(others, memory=1)
    numbers = yardstick(others, streamed, cb.exact_fisher(fitted, memory=1), DAMPING)
    frozen = Frozen.of(probe, fitted, probe.fit(fitted), DAMPING)
    held = Held(others, restored(cb.exact_fisher(others, memory=1), numbers), numbers)
    rows = {(row.metric, row.scope): row.value for row in population_rows(frozen, held, DAMPING)}
    for place, row in pair.rows(probe).items():
        assert rows[place] == pytest.approx(row.value, rel=1e-7), place
