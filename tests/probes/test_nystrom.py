"""The Nystroem approximation against F Omega (Omega^T F Omega)^+ Omega^T F of dense matrices."""

from __future__ import annotations

import oracles
import pytest
import torch
from cases import instance_of, truth
from judging import near
from torch import Tensor

import curvbench as cb
from curvbench.probes.nystrom import eigenpairs

RANKS = (1, 4, 9)


def dense_of(name: str, **options: object) -> Tensor:
    return cb.fit(cb.probe("nystrom", **options), instance_of(name)).to_dense()


def expected(fisher: Tensor, rank: int, power: int = 0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    test = torch.randn(len(fisher), rank, generator=generator, dtype=torch.float64)
    for _ in range(power):
        test = torch.linalg.qr(fisher @ test)[0]
    image = fisher @ test
    return image @ torch.linalg.pinv(test.T @ image, hermitian=True) @ image.T


@pytest.mark.parametrize("power", [0, 1])
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn", "tokens"])
def test_it_is_the_nystroem_approximation(name: str, rank: int, power: int) -> None:
    fisher = truth(name).fisher()
    found = dense_of(name, rank=rank, power=power)
    assert near(found, expected(fisher, rank, power), 1e-8)
    assert oracles.relative(expected(fisher, rank, power, seed=1), found) > 1e-4, "other vectors are another matrix"


@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn"])
def test_it_lies_between_zero_and_the_fisher(name: str) -> None:
    fisher = truth(name).fisher()
    scale = float(fisher.norm())
    for found in (dense_of(name, rank=4, seed=seed, power=seed % 2) for seed in range(4)):
        assert float(torch.linalg.eigvalsh(found)[0]) >= -1e-12 * scale
        assert float(torch.linalg.eigvalsh(fisher - found)[0]) >= -1e-12 * scale
    above = dense_of(name, rank=4, tail="last")
    assert float(torch.linalg.eigvalsh(fisher - above)[0]) < -1e-6 * scale, "the control: a tail can lie above"


@pytest.mark.parametrize("kind", ["type-2", "empirical"])
def test_with_the_rank_of_the_fisher_it_is_the_fisher(kind: str) -> None:
    fisher = truth("mlp_tanh").fisher(kind)
    rank = int(torch.linalg.matrix_rank(fisher, hermitian=True))
    assert oracles.relative(dense_of("mlp_tanh", rank=rank + 2, fisher_type=kind), fisher) <= 1e-10
    assert oracles.relative(dense_of("mlp_tanh", rank=rank - 1, fisher_type=kind), fisher) > 1e-7


def test_every_rank_helps_and_so_do_powers_but_none_beats_the_largest_eigenpairs() -> None:
    fisher = truth("mlp_tanh").fisher()
    for rank in RANKS:
        best = oracles.relative(cb.fit(cb.probe("eigen", rank=rank), instance_of("mlp_tanh")).to_dense(), fisher)
        errors = [oracles.relative(dense_of("mlp_tanh", rank=rank, power=power), fisher) for power in (0, 1, 8)]
        assert best <= errors[2] * (1 + 1e-9) and errors[2] <= errors[1] <= errors[0]


def test_the_tail_is_the_preconditioner_of_nystroem_pcg() -> None:
    """P^-1 = (l + mu) U (L + mu)^-1 U^T + I - U U^T, up to the scale l + mu with the smallest eigenvalue l."""
    probe = cb.probe("nystrom", rank=5, tail="last", damping=0.1)
    state = probe.refresh(probe.fit(instance_of("mlp_tanh")))
    U, L = state
    v = torch.randn(len(U), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    preconditioned = (L[-1] + 0.1) * U @ ((U.T @ v) / (L + 0.1)) + v - U @ (U.T @ v)
    assert near((L[-1] + 0.1) * probe.precondition(state, v), preconditioned, 1e-12)


@pytest.mark.parametrize("size", [0.0, 1e-200, 1e100])
def test_any_scale_of_the_fisher(size: float) -> None:
    """Also one that rounding has made indefinite by more than its own shift."""
    generator = torch.Generator().manual_seed(0)
    test = torch.linalg.qr(torch.randn(8, 3, generator=generator, dtype=torch.float64))[0]
    columns = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    fisher = columns @ columns.T
    basis, values = eigenpairs(test, size * (fisher @ test))
    image = fisher @ test
    right = size * (image @ torch.linalg.pinv(test.T @ image, hermitian=True, rtol=1e-10) @ image.T)
    assert near((basis * values) @ basis.T, right, 1e-10) or float(right.norm()) == 0 == float(values[0].round())
    shaken = eigenpairs(test, size * (fisher @ test - 1e-9 * test)).values
    assert bool(torch.isfinite(shaken).all()) and float(shaken[-1]) >= 0


def test_what_is_no_rank_is_refused_in_one_line() -> None:
    instance = instance_of("mlp_many_samples")
    assert cb.probe("nystrom", rank=instance.size).unsupported(instance) is None
    reason = cb.probe("nystrom", rank=instance.size + 1).unsupported(instance)
    assert reason == f"rank {instance.size + 1} is more than the {instance.size} parameters"
    for options in ({"rank": 0}, {"power": -1}, {"tail": "some"}):
        with pytest.raises(ValueError, match=next(iter(options))) as caught:
            cb.probe("nystrom", **options)
        assert "\n" not in str(caught.value)
    probe = cb.probe("nystrom", rank=2, damping=0.0)
    with pytest.raises(ValueError, match="singular without damping"):
        probe.precondition(probe.refresh(probe.fit(instance)), instance.gradient())
