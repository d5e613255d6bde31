"""Ginger against dense running averages, and its printed forms against the repaired ones."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from cases import instance_of, truth
from streams import dense_ema, relative, stream, tracking, truncated
from torch import Tensor

import curvbench as cb
from curvbench.fisher.stochastic import batch_gradient
from curvbench.parts import brand

DECAY = 0.9
FIXES = ("fix_a", "fix_b")


def followed(vectors: list[Tensor], rank: int, form: brand.Form = "direct", damping: float = 1e-2) -> brand.Eigen:
    values = vectors[0].new_zeros(0)
    basis = vectors[0].new_zeros(len(vectors[0]), 0)
    for d in vectors:
        if form == "direct":
            basis, values = brand.ema(basis, values, d, DECAY, rank)
        else:
            basis, values = brand.ema_by_inverse(basis, values, d, DECAY, rank, damping, form)
    return basis, values


def dense(pair: brand.Eigen) -> Tensor:
    basis, values = (t.double() for t in pair)
    return basis @ torch.diag(values) @ basis.T


def drawn(name: str, count: int) -> list[Tensor]:
    return [batch_gradient(instance_of(name), "bg", 0, t) for t in range(count)]


def fitted(name: str, **hyperparameters: Any) -> Tensor:
    return cb.fit(cb.probe("ginger", **hyperparameters), instance_of(name)).to_dense()


# --- the probe on instances --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["direct", *FIXES])
@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn", "tokens"])
def test_exact_while_the_rank_suffices(name: str, form: str) -> None:
    found = fitted(name, updates=8, rank=8, decay=DECAY, update_form=form)
    assert relative(found, dense_ema(drawn(name, 8), DECAY)) < (1e-12 if form == "direct" else 1e-9)


def test_the_average_starts_at_zero_and_can_be_corrected_for_it() -> None:
    """E-G11: not at the identity."""
    average = dense_ema(drawn("mlp_tanh", 5), DECAY)
    assert relative(fitted("mlp_tanh", updates=5, decay=DECAY), average) < 1e-12
    corrected = fitted("mlp_tanh", updates=5, decay=DECAY, bc=True)
    assert relative(corrected, average / (1 - DECAY**5)) < 1e-12
    assert relative(corrected, dense_ema(drawn("mlp_tanh", 5), DECAY, start=1.0)) > 0.1


def test_per_tensor_is_the_block_diagonal_of_the_average() -> None:
    """Each layer's block is the diagonal block of the dense running average."""
    found = fitted("mlp_tanh", updates=6, rank=6, decay=DECAY, scope="per_tensor")
    sizes = [layer.size for layer in instance_of("mlp_tanh").layers]
    assert relative(found, oracles.keep(dense_ema(drawn("mlp_tanh", 6), DECAY), sizes)) < 1e-12


def test_per_tensor_keeps_more_ranks_than_a_small_layer_has() -> None:
    sizes = [layer.size for layer in instance_of("mlp_many_samples").layers]
    found = fitted("mlp_many_samples", updates=20, rank=15, decay=DECAY, scope="per_tensor")
    assert min(sizes) < 15
    assert relative(found, oracles.keep(dense_ema(drawn("mlp_many_samples", 20), DECAY), sizes)) < 1e-12


def test_many_updates_come_to_the_fisher() -> None:
    """With the correction for its start the average is an unbiased estimate of the type-2 Fisher."""
    fisher = truth("mlp_gaussian").fisher()

    def error(updates: int, decay: float) -> float:
        return relative(fitted("mlp_gaussian", updates=updates, rank=43, decay=decay, bc=True), fisher)

    assert error(10, 0.9) / error(1000, 0.999) > 4


def test_more_ranks_than_parameters_are_unsupported() -> None:
    instance = instance_of("mlp_many_samples")
    assert cb.probe("ginger", rank=instance.size).unsupported(instance) is None
    reason = cb.probe("ginger", rank=instance.size + 1).unsupported(instance)
    assert reason is not None and "rank" in reason


# --- the recursion on any stream ---------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_every_step_is_the_best_truncation(rank: int) -> None:
    vectors = stream(12, 20, 0.5)
    basis, values = followed(vectors[:1], rank)
    for d in vectors[1:]:
        target = DECAY * dense((basis, values)) + (1 - DECAY) * torch.outer(d, d)
        basis, values = brand.ema(basis, values, d, DECAY, rank)
        assert relative(dense((basis, values)), truncated(target, rank)) < 1e-12
        assert float((basis.T @ basis - torch.eye(basis.shape[1])).abs().max()) < 1e-13


def test_it_lies_below_the_average_within_its_bound() -> None:
    vectors, rank = stream(30, 15, 0.3), 4
    basis, values, bound = *followed(vectors[:1], rank), 0.0
    for d in vectors[1:]:
        target = DECAY * dense((basis, values)) + (1 - DECAY) * torch.outer(d, d)
        bound = DECAY * bound + float(torch.linalg.eigvalsh(target)[-rank - 1])
        basis, values = brand.ema(basis, values, d, DECAY, rank)
    average = dense_ema(vectors, DECAY)
    gaps = torch.linalg.eigvalsh(average - dense((basis, values)))
    assert float(gaps[0]) > -1e-12 * float(average.norm())
    assert 0.1 * bound < float(gaps[-1]) <= bound * (1 + 1e-12)


@pytest.mark.parametrize("form", FIXES)
@pytest.mark.parametrize("damping", [1e-3, 1e-1, 10.0])
def test_the_average_does_not_depend_on_the_damping(form: brand.Form, damping: float) -> None:
    """The repaired forms carry gamma through, and it cancels."""
    vectors = stream(12, 20, 0.5)
    assert relative(dense(followed(vectors, 4, form, damping)), dense(followed(vectors, 4))) < 1e-9


def test_the_damped_inverse_is_one_over_the_damping_at_most() -> None:
    basis, values = followed(stream(12, 20, 0.5), 4)
    inverse = torch.stack([brand.damped_inverse(basis, values, e, 0.01) for e in torch.eye(20).double()])
    assert abs(0.01 * float(torch.linalg.eigvalsh(inverse)[-1]) - 1) < 1e-12


def test_a_vector_inside_the_span_and_a_zero_vector() -> None:
    vectors = stream(3, 10)
    vectors = [*vectors, vectors[0] - 2 * vectors[2], torch.zeros(10).double(), 1e-200 * vectors[1]]
    basis, values = followed(vectors, 8)
    assert basis.shape[1] <= 4
    assert relative(dense((basis, values)), dense_ema(vectors, DECAY)) < 1e-12


# --- errata ------------------------------------------------------------------------------------------------


def resolvents(printed_weight: bool = False, new_matrix: bool = False) -> tuple[Tensor, Tensor]:
    """The true inverse after one step, and alpha^-1 G^-1 - beta h h^T as stated (or repaired), dense."""
    vectors, gamma, eye = stream(11, 12), 1e-2, torch.eye(12).double()
    before, d = dense_ema(vectors[:-1], DECAY), vectors[-1]
    after = dense_ema(vectors, DECAY)
    inverse = torch.linalg.inv(before + gamma / DECAY * eye)
    h = torch.linalg.inv((after if new_matrix else before) + gamma / DECAY * eye) @ d
    weight = (1 / DECAY - (0 if printed_weight else 1)) / (DECAY + (1 - DECAY) * (h @ d))
    return torch.linalg.inv(after + gamma * eye), inverse / DECAY - weight * torch.outer(h, h)


def test_e_g2_h_comes_from_the_old_matrix() -> None:
    assert relative(*reversed(resolvents())) < 1e-10
    assert relative(*reversed(resolvents(new_matrix=True))) > 0.05


def test_e_g3_the_weight_of_the_text_lacks_a_factor() -> None:
    truth_, printed = resolvents(printed_weight=True)
    assert relative(printed, truth_) > 1
    assert float(torch.linalg.eigvalsh(printed)[0]) < 0 < float(torch.linalg.eigvalsh(truth_)[0])


def test_e_g4_damping_is_counted_once() -> None:
    """Eq. 17 damps the old average and its sum: the floor would be (1 + alpha) gamma."""
    gamma, eye = 1e-2, torch.eye(20).double()
    vectors = stream(6, 20)
    printed = gamma * eye + DECAY * (dense_ema(vectors[:-1], DECAY) + gamma * eye)
    printed = printed + (1 - DECAY) * torch.outer(vectors[-1], vectors[-1])
    floor = float(torch.linalg.eigvalsh(dense(followed(vectors, 6)) + gamma * eye)[0])
    assert abs(floor / gamma - 1) < 1e-9
    assert abs(float(torch.linalg.eigvalsh(printed)[0]) / gamma - 1.9) < 1e-9


def test_e_g5_algorithm_1_as_printed_is_not_the_average() -> None:
    """Negative control: after ten steps of rank ten its inverse is far off, with negative values."""
    gamma, eye = 1e-2, torch.eye(20).double()
    vectors = stream(10, 20)
    exact = torch.linalg.inv(dense_ema(vectors, DECAY) + gamma * eye)

    def error(form: brand.Form) -> float:
        return relative(torch.linalg.inv(dense(followed(vectors, 10, form, gamma)) + gamma * eye), exact)

    assert max(error("direct"), *(error(form) for form in FIXES)) < 1e-9
    assert error("printed") > 0.1
    assert float(followed(vectors, 10, "printed", gamma)[1].min()) < 0


def test_e_g5_the_first_step_as_printed() -> None:
    d = stream(1, 20)[0]
    whole = (1 - DECAY) * float(d @ d)
    for form in ("direct", *FIXES):
        assert abs(float(followed([d], 4, form)[1][0]) / whole - 1) < 1e-9
    assert float(followed([d], 4, "printed")[1][0]) < 0


def test_e_g5_the_printed_probe_stays_positive_semi_definite_and_is_wrong() -> None:
    found = fitted("mlp_tanh", updates=8, rank=8, decay=DECAY, update_form="printed")
    assert float(torch.linalg.eigvalsh(found)[0]) >= -1e-12
    assert relative(found, dense_ema(drawn("mlp_tanh", 8), DECAY)) > 0.1


def test_e_g12_the_inverse_loses_large_values_in_single_precision() -> None:
    vectors = [d.float() for d in stream(12, 20, 0.5)]
    reference = dense(followed(stream(12, 20, 0.5), 4))
    largest = float(torch.linalg.eigvalsh(reference)[-1])
    assert relative(dense(followed(vectors, 4)), reference) < 1e-5
    assert relative(dense(followed(vectors, 4, "fix_b", largest / 1e1)), reference) < 1e-4
    assert relative(dense(followed(vectors, 4, "fix_b", largest / 1e6)), reference) > 1e-2


# --- against the other method of its kind ------------------------------------------------------------------


@pytest.mark.parametrize("rank", [4, 16])
def test_at_equal_rank_it_follows_the_average_better_than_qng(rank: int) -> None:
    """E-Q6: QNG keeps a window that does not decay. Error of the low-rank part, beside the best there is."""
    shared = {"updates": 64, "decay": 0.95}
    average = dense_ema(drawn("mlp_gaussian", 64), 0.95)
    ginger = tracking(fitted("mlp_gaussian", rank=rank, **shared), average, rank)
    qng = cb.fit(cb.probe("qng", memory=rank, **shared), instance_of("mlp_gaussian")).to_dense()
    window = tracking(qng - 0.95**rank * torch.eye(len(qng)).double(), average, rank)
    assert ginger.best <= ginger.error < 1.5 * ginger.best + 0.02
    assert window.error > 1.5 * ginger.error
