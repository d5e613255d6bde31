"""Methods that learn over steps as a function of their updates, at frozen parameters, on batches drawn anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import instance_of, mlp, truth, weights_of
from streams import dense_ema, relative, tracking
from torch import Tensor

import curvbench as cb
from curvbench.fisher.stochastic import Statistic, batch_gradient
from curvbench.registry import every_probe

LEARNING = [p.name for p in every_probe() if "batch_size" in p.hyperparameters]
DECAY = 0.9
BATCH = 4


def drawn(name: str, count: int, statistic: Statistic = "bg", size: int = BATCH) -> list[Tensor]:
    return [batch_gradient(instance_of(name).draw(size, seed=t), statistic, 0, t) for t in range(count)]


def gradient_cosines(step: Tensor, instance: cb.Instance) -> dict[str, float]:
    """The cosine of the step with the gradient in each layer."""
    pairs = {layer.name: (step[layer.slice], instance.gradient()[layer.slice]) for layer in instance.layers}
    return {name: float(torch.cosine_similarity(p, g, dim=0)) for name, (p, g) in pairs.items()}


def fitted(probe: str, name: str, **hyperparameters: Any) -> Tensor:
    return cb.fit(cb.probe(probe, **hyperparameters), instance_of(name)).to_dense()


def scaled_error(found: Tensor, truth_: Tensor) -> float:
    return relative(float((found * truth_).sum() / found.norm() ** 2) * found, truth_)


# --- what an update sees -----------------------------------------------------------------------------------


def test_every_method_with_a_state_that_learns_can_be_shown_batches() -> None:
    assert set(LEARNING) >= {"adam", "adamw", "fngd", "ginger", "klshampoo", "muon", "qng", "sgdm", "shampoo", "soap"}


@pytest.mark.parametrize("name", LEARNING)
def test_fit_shows_batches_drawn_anew(name: str) -> None:
    instance = instance_of("mlp_tanh")
    probe = cb.probe(name, updates=3, batch_size=BATCH)
    state = probe.init(instance)
    for t in range(3):
        state = probe.update(state, instance.draw(BATCH, seed=t))
    expected = probe.precondition(probe.refresh(state), instance.gradient())
    assert torch.equal(probe.precondition(probe.refresh(probe.fit(instance)), instance.gradient()), expected)
    whole = cb.probe(name, updates=3)
    assert relative(whole.precondition(whole.refresh(whole.fit(instance)), instance.gradient()), expected) > 1e-3


def test_a_batch_is_some_of_the_samples_in_random_order() -> None:
    instance = instance_of("mlp_tanh")
    rows = [tuple(row) for row in instance.inputs.tolist()]
    batch = instance.draw(4, seed=1)
    found = [rows.index(tuple(row)) for row in batch.inputs.tolist()]
    assert len(set(found)) == 4 == batch.samples == batch.terms and found != sorted(found)
    assert torch.equal(batch.targets, instance.targets[found])
    assert torch.equal(instance.draw(4, seed=1).inputs, batch.inputs)
    assert not torch.equal(instance.draw(4, seed=2).inputs, batch.inputs)
    whole = instance.draw(instance.samples, seed=1)
    assert relative(whole.gradient(), instance.gradient()) < 1e-12
    assert relative(batch.gradient(), instance.gradient()) > 1e-3


def test_tokens_that_count_are_counted_anew() -> None:
    instance = instance_of("tokens")
    for seed in range(4):
        batch = instance.draw(2, seed)
        assert batch.terms == int((batch.targets != -100).sum())
        rebuilt = weights_of(instance.model, batch.inputs, batch.targets)
        assert torch.equal(batch.gradient(), rebuilt.gradient())


def test_a_batch_that_cannot_be_drawn_is_refused_in_one_line() -> None:
    instance = instance_of("mlp_tanh")
    for count in (0, instance.samples + 1):
        with pytest.raises(ValueError, match=f"{instance.samples} samples") as caught:
            instance.draw(count, seed=0)
        assert "\n" not in str(caught.value)
    targets = torch.full((4, 3), -100)
    targets[0] = 1
    ignored = cb.Instance(mlp(3, 4, 2).double(), torch.randn(4, 3, 3).double(), targets)
    with pytest.raises(ValueError, match="without any loss term"):
        for seed in range(8):
            ignored.draw(1, seed)


# --- Ginger and QNG ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", [1, 2, 5, 9])
def test_while_the_rank_suffices_they_are_the_running_average_of_the_stream(updates: int) -> None:
    shared = {"updates": updates, "decay": DECAY, "batch_size": BATCH}
    vectors = drawn("mlp_tanh", updates)
    found = fitted("ginger", "mlp_tanh", rank=9, **shared)
    assert relative(found, dense_ema(vectors, DECAY)) < 1e-12
    corrected = fitted("ginger", "mlp_tanh", rank=9, bc=True, **shared)
    assert relative(corrected, dense_ema(vectors, DECAY) / (1 - DECAY**updates)) < 1e-12
    assert relative(fitted("qng", "mlp_tanh", memory=9, **shared), dense_ema(vectors, DECAY, start=1.0)) < 1e-12
    assert relative(found, dense_ema(drawn("mlp_tanh", updates, size=BATCH + 1), DECAY)) > 1e-2  # another stream


@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn", "tokens"])
def test_the_floor_is_left_out_of_the_operator_alone(name: str) -> None:
    instance = instance_of(name)
    whole, learned = (cb.probe("qng", memory=4, updates=9, decay=DECAY, floor=floor) for floor in (True, False))
    state, v = whole.fit(instance), torch.randn(instance.size).double()
    floor = DECAY**4 * torch.eye(instance.size).double()
    assert relative(learned.operator(state).to_dense(), whole.operator(state).to_dense() - floor) < 1e-12
    assert torch.equal(learned.precondition(state, v), whole.precondition(state, v))


def test_the_error_falls_with_updates_to_that_of_the_rank() -> None:
    """Without truncation to zero, with rank 4 to the least error that the rank allows."""
    fisher = truth("mlp_gaussian").fisher()
    best = relative(fitted("eigen", "mlp_gaussian", rank=4), fisher)

    def error(updates: int, decay: float, rank: int) -> float:
        shared = {"updates": updates, "decay": decay, "rank": rank, "batch_size": 3}
        return scaled_error(fitted("ginger", "mlp_gaussian", bc=True, **shared), fisher)

    assert error(400, 0.995, 43) < 0.5 * error(40, 0.95, 43) < 0.35 * error(4, 0.5, 43)
    assert best <= error(400, 0.995, 4) < 1.2 * best < error(4, 0.5, 4)


def test_the_error_falls_with_the_rank_and_never_below_the_bound() -> None:
    """Against the Fisher any low-rank estimate stands above the best of its rank, against its own average as well."""
    fisher, updates, decay = truth("mlp_gaussian").fisher(), 200, 0.98
    average = dense_ema(drawn("mlp_gaussian", updates, size=3), decay)
    shared = {"updates": updates, "decay": decay, "batch_size": 3}
    errors, distances = [], []
    for rank in (1, 2, 4, 8):
        best = relative(fitted("eigen", "mlp_gaussian", rank=rank), fisher)
        ginger = fitted("ginger", "mlp_gaussian", rank=rank, **shared)
        qng = fitted("qng", "mlp_gaussian", memory=rank, floor=False, **shared)
        errors.append(scaled_error(ginger, fisher))
        assert best - 1e-12 <= errors[-1] < scaled_error(qng, fisher)
        followed, window = tracking(ginger, average, rank), tracking(qng, average, rank)
        assert followed.best - 1e-12 <= followed.error < 1.3 * followed.best
        assert window.error > followed.error + 0.1
        distances.append(followed.error)
    assert errors == sorted(errors, reverse=True) and errors[0] > 1.2 * errors[-1]
    assert distances == sorted(distances, reverse=True) and distances[0] > 2 * distances[-1]


# --- Adam and Shampoo --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("updates", [1, 3, 12])
def test_the_second_moment_is_a_mean_of_the_squares_it_has_seen(name: str, updates: int) -> None:
    """Weights (1 - beta) beta^(T - t) / (1 - beta^T) sum to one after any T; without the correction they do not."""
    gradients = [g / BATCH**0.5 for g in drawn("mlp_tanh", updates, "bg_data")]
    powers = torch.tensor([0.8 ** (updates - t) for t in range(1, updates + 1)], dtype=torch.float64)
    squares = torch.stack([g.square() for g in gradients])
    expected = BATCH * (powers / powers.sum()) @ squares
    found = fitted(name, "mlp_tanh", updates=updates, beta2=0.8, batch_size=BATCH).diagonal()
    assert relative(found, expected) < 1e-12
    assert relative(0.2 * BATCH * powers @ squares, expected) > 0.9 * 0.8**updates


def test_adam_comes_no_nearer_than_a_diagonal_can() -> None:
    fisher = truth("mlp_many_samples").fisher("empirical")
    best = relative(torch.diag(fisher.diagonal()), fisher)

    def error(updates: int) -> float:
        probe = cb.probe("adam", updates=updates, batch_size=1, beta2=1 - 1 / (updates + 1))
        return relative(cb.fit(probe, instance_of("mlp_many_samples")).to_dense(), fisher)

    assert best <= error(400) < 1.05 * best < error(2)


def test_shampoo_sums_where_it_steps_and_has_the_mean_as_matrix() -> None:
    """Shown one gradient all the time, its matrix stays; shown a stream, it has the sum of moments."""
    once, often = (fitted("shampoo", "mlp_tanh", updates=t, epsilon=0.0) for t in (1, 7))
    assert relative(often, once) < 1e-7  # square roots of rounding
    probe = cb.probe("shampoo", updates=7, batch_size=BATCH, epsilon=0.0)
    sums = probe.fit(instance_of("mlp_tanh")).sums
    gradients = [g / BATCH**0.5 for g in drawn("mlp_tanh", 7, "bg_data")]
    for layer, ((left, right),) in zip(instance_of("mlp_tanh").layers, sums, strict=True):
        matrices = [g[layer.slice].reshape(layer.shape)[0] for g in gradients]
        assert relative(left[0], sum(G @ G.T for G in matrices)) < 1e-12
        assert relative(right[0], sum(G.T @ G for G in matrices)) < 1e-12


# --- FNGD --------------------------------------------------------------------------------------------------


def test_fngd_turns_into_gradient_descent_when_its_first_epoch_is_over() -> None:
    """E-F5: exact coefficients, then averages over positions; the cosine with the gradient, in every layer."""
    inputs, targets = torch.randn(96, 6).double(), torch.randint(3, (96,))
    instance = cb.Instance(mlp(6, 8, 3).double(), inputs, targets)

    def cosines(updates: int) -> dict[str, float]:
        probe = cb.probe("fngd", stage="shared", batches=16, updates=updates, batch_size=96)
        step = probe.precondition(probe.refresh(probe.fit(instance)), instance.gradient())
        return gradient_cosines(step, instance)

    first, still, later = (cosines(updates) for updates in (1, 16, 17))
    exact = cb.probe("fngd")
    step = exact.precondition(exact.refresh(exact.fit(instance)), instance.gradient())
    assert first == pytest.approx(gradient_cosines(step, instance), abs=1e-10)
    assert still == pytest.approx(first, abs=1e-10)
    for layer in instance.layers:
        assert later[layer.name] > 0.97 > 0.9 > still[layer.name]
