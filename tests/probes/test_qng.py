"""QNG against dense running averages and windows, the printed coefficient and the public recursion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import instance_of
from streams import dense_ema, orthogonal_stream, relative, stream
from torch import Tensor

import curvbench as cb
from curvbench.fisher.stochastic import batch_gradient
from curvbench.probes.qng import State, append, inverse

DECAY = 0.9


def drawn(name: str, count: int) -> list[Tensor]:
    return [batch_gradient(instance_of(name), "bg", 0, t) for t in range(count)]


def fitted(name: str, **hyperparameters: Any) -> Tensor:
    return cb.fit(cb.probe("qng", **hyperparameters), instance_of(name)).to_dense()


def factors(vectors: list[Tensor], memory: int, printed: bool = False) -> list[Tensor]:
    """The last dense factors K of the recursion, oldest first, by the formulas of the paper."""
    eye = torch.eye(len(vectors[0]), dtype=torch.float64)
    kept: list[Tensor] = []
    for d in vectors:
        root = torch.linalg.multi_dot([eye, eye, *kept]) if kept else eye
        q = torch.linalg.solve(root, d)
        size = q @ q
        if printed:
            beta = (DECAY**0.5 + (1 - DECAY) * size - DECAY**0.5) / size
        else:
            beta = ((DECAY + (1 - DECAY) * size).sqrt() - DECAY**0.5) / size
        kept = [*kept, DECAY**0.5 * eye + beta * torch.outer(q, q)][-memory:]
    return kept


def product(kept: list[Tensor]) -> Tensor:
    root = torch.eye(len(kept[0]), dtype=torch.float64)
    for factor in kept:
        root = root @ factor
    return root @ root.T


@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn", "tokens"])
def test_it_is_the_average_from_the_identity_while_the_memory_suffices(name: str) -> None:
    """E-Q2."""
    found = fitted(name, updates=6, memory=6, decay=DECAY)
    assert relative(found, dense_ema(drawn(name, 6), DECAY, start=1.0)) < 1e-12


@pytest.mark.parametrize("memory", [1, 2, 5])
def test_with_truncation_it_is_the_product_of_the_last_factors(memory: int) -> None:
    found = fitted("mlp_tanh", updates=9, memory=memory, decay=DECAY)
    assert relative(found, product(factors(drawn("mlp_tanh", 9), memory))) < 1e-12


@pytest.mark.parametrize("memory", [1, 3, 8])
def test_it_is_a_floor_plus_as_many_ranks_as_factors(memory: int) -> None:
    """E-Q3: not twice as many."""
    found = fitted("mlp_tanh", updates=12, memory=memory, decay=DECAY)
    above = torch.linalg.eigvalsh(found - DECAY**memory * torch.eye(len(found)).double())
    assert float(above[0]) > -1e-12 * float(above[-1])
    assert int((above > 1e-12 * above[-1]).sum()) == memory


def test_orthogonal_vectors_make_a_window_that_does_not_decay() -> None:
    """E-Q6: every kept vector has the weight (1 - alpha) / alpha, whatever its age (dense, by the recursion)."""
    vectors = orthogonal_stream(8, 12)
    window = sum(torch.outer(d, d) for d in vectors[-4:]) * (1 - DECAY) / DECAY
    found = product(factors(vectors, 4))
    assert relative(found, DECAY**4 * torch.eye(12).double() + window) < 1e-12
    assert relative(found, dense_ema(vectors, DECAY, start=1.0)) > 0.2


@pytest.mark.parametrize("memory", [1, 4, 16])
def test_precondition_is_the_inverse_in_the_right_order(memory: int) -> None:
    """G^-1 = A^-T A^-1: the oldest factor first, then back."""
    instance, probe = instance_of("mlp_tanh"), cb.probe("qng", updates=9, memory=memory, decay=DECAY)
    state, v = probe.fit(instance), torch.randn(instance.size).double()
    expected = torch.linalg.solve(probe.operator(state).to_dense(), v)
    assert relative(probe.precondition(state, v), expected) < 1e-12
    swapped = state._replace(vectors=state.vectors.flip(0), shrinkage=state.shrinkage.flip(0))
    assert (relative(probe.precondition(swapped, v), expected) > 1e-6) == (memory > 1)


def test_e_q1_the_coefficient_of_the_text_lacks_a_bracket() -> None:
    vectors = stream(5, 12)
    average = dense_ema(vectors, DECAY, start=1.0)
    assert relative(product(factors(vectors, 5)), average) < 1e-12
    assert relative(product(factors(vectors, 5, printed=True)), average) > 1


@pytest.mark.parametrize(("correlation", "least"), [(0.0, 1e-4), (0.5, 0.02), (0.9, 0.1)])
def test_e_q5_the_public_recursion_is_a_sum_not_a_product(correlation: float, least: float) -> None:
    """Negative control: the inverse root of the same four factors, the worse the more gradients agree."""
    vectors = stream(4, 50, correlation)
    state = State(torch.zeros(0, 50).double(), torch.zeros(0).double(), 0)
    for d in vectors:
        state = append(state, d, DECAY, 4)
    kept, v = factors(vectors, 4), stream(1, 50, correlation, seed=1)[0] + vectors[-1]
    expected = torch.linalg.solve(torch.linalg.multi_dot(kept), v)
    assert relative(inverse(state.vectors, state.shrinkage, v, DECAY), expected) < 1e-12
    assert relative(inverse(state.vectors, state.shrinkage, v, DECAY, "sum"), expected) > least


def test_e_q5_the_two_recursions_agree_for_one_factor_only() -> None:
    instance, v = instance_of("mlp_tanh"), torch.randn(79).double()

    def steps(memory: int) -> list[Tensor]:
        probes = [cb.probe("qng", recursion=kind, memory=memory, decay=DECAY) for kind in ("product", "sum")]
        return [p.precondition(p.fit(instance), v) for p in probes]

    assert relative(*steps(1)) < 1e-12
    assert relative(*steps(8)) > 1e-3


def test_the_operator_of_the_public_recursion_is_the_inverse_of_what_it_applies() -> None:
    instance, probe = instance_of("mlp_tanh"), cb.probe("qng", recursion="sum", updates=9, memory=4, decay=DECAY)
    state = probe.fit(instance)
    applied = torch.stack([probe.precondition(state, e) for e in torch.eye(instance.size).double()], dim=1)
    assert relative(applied, applied.T) < 1e-12
    assert relative(probe.operator(state).to_dense() @ applied, torch.eye(instance.size).double()) < 1e-9


def test_more_memory_than_parameters_is_unsupported() -> None:
    instance = instance_of("mlp_many_samples")
    reason = cb.probe("qng", memory=instance.size + 1).unsupported(instance)
    assert reason is not None and "memory" in reason
    assert cb.probe("qng", memory=instance.size).unsupported(instance) is None


def test_before_the_first_update_it_is_the_identity() -> None:
    instance = instance_of("mlp_tanh")
    for kind in ("product", "sum"):
        probe = cb.probe("qng", recursion=kind)
        assert torch.equal(probe.operator(probe.init(instance)).to_dense(), torch.eye(instance.size).double())
