"""EKFAC: the projection of the exact block on the matrices that are diagonal in K-FAC's eigenbasis."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from cases import CASES, Case, Truth, instance_of, truth
from judging import cases_with_regular_factors, group_blocks, near, rescaled
from torch import Tensor, nn

import curvbench as cb
from curvbench.meters.flops import FlopMeter


def dense_of(case: str, **hyperparameters: Any) -> Tensor:
    return cb.fit(cb.probe("ekfac", **hyperparameters), instance_of(case)).to_dense()


@pytest.mark.parametrize("kind", ["type-2", "empirical"])
def test_is_the_projection_in_the_basis_of_kfac(kind: str) -> None:
    """The dense projection depends on the basis, which is unique where no eigenvalue is repeated."""
    checked = 0
    for name in cases_with_regular_factors(kind):
        found = group_blocks(truth(name), dense_of(name, fisher_type=kind), kind)
        exact = group_blocks(truth(name), truth(name).fisher(kind), kind)
        for (part, block), (_, fisher) in zip(found, exact, strict=True):
            assert near(block, oracles.ekfac_block(fisher, *oracles.kfac_factors(part)), 1e-8), name
            checked += 1
    assert checked >= 3


@pytest.mark.parametrize("kind", ["type-2", "empirical"])
def test_no_worse_than_kfac_in_every_layer(case: Case, judge: Truth, kind: str) -> None:
    """The error is at most K-FAC's, and the projection obeys Pythagoras: |F^|^2 + |F^ - F|^2 = |F|^2."""
    found = group_blocks(judge, dense_of(case.name, fisher_type=kind), kind)
    exact = group_blocks(judge, judge.fisher(kind), kind)
    for (part, block), (_, fisher) in zip(found, exact, strict=True):
        b, a = oracles.kfac_factors(part)
        scale = max(float(fisher.norm()), 1e-300)
        error = float((block - fisher).norm()) / scale
        assert error <= float((torch.kron(b, a) - fisher).norm()) / scale + 1e-13
        assert (float(block.norm()) / scale) ** 2 + error**2 == pytest.approx(float(fisher.norm() / scale), abs=1e-12)


@pytest.mark.parametrize("kind", ["type-2", "mc", "empirical"])
def test_trace_is_exact(case: Case, kind: str) -> None:
    """The trace of every layer is that of the exact block, convolutions included."""
    instance = instance_of(case.name)
    operator = cb.fit(cb.probe("ekfac", fisher_type=kind, seed=3), instance)
    fisher = cb.exact_fisher(instance, fisher_type=kind, seed=3)
    for layer in instance.layers:
        found = operator.block(layer.start, layer.start + layer.size).trace()
        assert found == pytest.approx(fisher.layer(layer.name).trace(), rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("kind", ["type-2", "mc", "empirical"])
def test_exact_for_one_sample(kind: str) -> None:
    """The Fisher blocks of one sample are represented exactly."""
    found = dense_of("one_sample", fisher_type=kind, seed=3)
    dense = cb.exact_fisher(instance_of("one_sample"), fisher_type=kind, seed=3).to_dense()
    assert near(found, oracles.keep(dense, oracles.layer_sizes(truth("one_sample").model)))


@pytest.mark.parametrize("factor", [0.5, 3.0])
@pytest.mark.parametrize("name", ["mlp_gaussian", "tokens_gaussian", "padded_cnn"])
def test_scales_with_the_loss(name: str, factor: float) -> None:
    """Scores times c make the empirical matrix c^2 times as large."""
    found = cb.fit(cb.probe("ekfac", fisher_type="empirical"), rescaled(name, factor)).to_dense()
    assert near(found, factor**2 * dense_of(name, fisher_type="empirical"), 1e-12)


# --- the variant of public code -----------------------------------------------------------------------------


def test_running_average_is_one_square_of_the_mean_gradient() -> None:
    for name in cases_with_regular_factors("empirical"):
        judge = truth(name)
        found = group_blocks(judge, dense_of(name, fisher_type="empirical", scalings="running-average"), "empirical")
        rank_one = len(judge.terms) * torch.outer(judge.gradient, judge.gradient)
        for (part, block), (_, square) in zip(found, group_blocks(judge, rank_one, "empirical"), strict=True):
            assert near(block, oracles.ekfac_block(square, *oracles.kfac_factors(part)), 1e-8), name


def test_running_average_is_no_projection() -> None:
    """The control: it is worse than K-FAC somewhere, misses the trace, and grows with a batch given twice."""
    judge = truth("mlp_tanh")
    blocks = oracles.keep(judge.fisher("empirical"), oracles.layer_sizes(judge.model))
    kfac = oracles.kfac(judge.factors("empirical"))
    found = dense_of("mlp_tanh", fisher_type="empirical", scalings="running-average")
    assert oracles.relative(dense_of("mlp_tanh", fisher_type="empirical"), blocks) <= oracles.relative(kfac, blocks)
    assert oracles.relative(found, blocks) > oracles.relative(kfac, blocks)
    assert abs(float(found.trace() / blocks.trace()) - 1) > 0.05
    model, inputs, targets = CASES["mlp_tanh"].build()
    twice = cb.Instance(model, inputs.repeat(2, 1), targets.repeat(2))
    again = cb.fit(cb.probe("ekfac", fisher_type="empirical", scalings="running-average"), twice).to_dense()
    assert near(again, 2 * found, 1e-8)


def test_running_average_comes_near_on_average_over_sampled_labels() -> None:
    """With labels of the model the cross terms vanish in expectation, so that many draws give the exact scalings."""
    instance, exact = instance_of("mlp_tanh"), cb.fit(cb.probe("ekfac"), instance_of("mlp_tanh"))
    for draws, low, high in ((1, 0.05, 10.0), (4000, 0.0, 0.05)):
        probe = cb.probe("ekfac", fisher_type="mc", mc_samples=draws, scalings="running-average")
        assert low <= abs(cb.fit(probe, instance).trace() / exact.trace() - 1) <= high


def test_running_average_needs_scores() -> None:
    with pytest.raises(ValueError, match="fisher_type=empirical") as caught:
        cb.probe("ekfac", scalings="running-average")
    assert "\n" not in str(caught.value)


def test_unknown_scalings_are_refused() -> None:
    with pytest.raises(ValueError, match="scalings"):
        cb.probe("ekfac", scalings="nonsense")


# --- bases that are kept, and averages ----------------------------------------------------------------------


class Batch:
    """A layer W and its block by hand: tanh(W [x, 1]) is the output under cross entropy, data labels."""

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        torch.manual_seed(7)
        self.model = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double()
        x, y = torch.randn(20, 4, generator=draw).double(), torch.randint(3, (20,), generator=draw)
        self.instance = cb.Instance(self.model, x * (1 + seed), y)
        a = torch.cat([x * (1 + seed), torch.ones(20, 1).double()], 1)
        outputs = self.model(x * (1 + seed)).detach()
        slopes = (outputs.softmax(1) - torch.eye(3).double()[y]) * (1 - outputs.square())
        self.A, self.B = a.T @ a / 20, slopes.T @ slopes / 20
        scores = torch.stack([torch.outer(g, v).flatten() for g, v in zip(slopes, a, strict=True)])
        self.fisher = scores.T @ scores / 20


def basis_of(B: Tensor, A: Tensor) -> Tensor:
    return torch.kron(torch.linalg.eigh(B)[1], torch.linalg.eigh(A)[1])


def projected(matrix: Tensor, Q: Tensor) -> Tensor:
    """The nearest matrix that is diagonal in the basis Q."""
    return Q @ torch.diag((Q.T @ matrix @ Q).diagonal()) @ Q.T


def after(batches: list[Batch], **options: Any) -> Tensor:
    probe, state = cb.probe("ekfac", fisher_type="empirical", **options), None
    for batch in batches:
        state = probe.update(state, batch.instance)
    return probe.operator(state).to_dense()


BATCHES = [Batch(seed) for seed in range(5)]


def test_without_averages_every_update_begins_anew() -> None:
    for count in range(1, 5):
        assert torch.equal(after(BATCHES[:count]), after(BATCHES[count - 1 : count]))


@pytest.mark.parametrize("basis_every", [2, 3])
def test_a_kept_basis_has_the_exact_diagonal_of_the_batch(basis_every: int) -> None:
    """And is nearer to the exact block than K-FAC in that basis, the one of the batch that made it."""
    for count in range(1, 6):
        last, made = BATCHES[count - 1], BATCHES[(count - 1) // basis_every * basis_every]
        found, Q = after(BATCHES[:count], basis_every=basis_every), basis_of(made.B, made.A)
        assert near(found, projected(last.fisher, Q), 1e-10)
        assert float((found - last.fisher).norm()) <= float((torch.kron(made.B, made.A) - last.fisher).norm())
        kfac_there = projected(torch.kron(last.B, last.A), Q)
        assert float((found - last.fisher).norm()) <= float((kfac_there - last.fisher).norm()) + 1e-13
        assert count <= 1 or (count - 1) % basis_every == 0 or not near(found, after([last]), 1e-3)


@pytest.mark.parametrize("basis_every", [1, 2])
def test_averages_are_of_matrices_and_of_factors(basis_every: int) -> None:
    """F^ <- the projection of 0.8 F^ + 0.2 F in the present basis, that of the averaged factors."""
    ema, matrix, A, B = 0.8, None, None, None
    for count, batch in enumerate(BATCHES):
        if count % basis_every == 0:
            A = batch.A if A is None else ema * A + (1 - ema) * batch.A
            B = batch.B if B is None else ema * B + (1 - ema) * batch.B
            Q = basis_of(B, A)
        matrix = projected(batch.fisher if matrix is None else ema * matrix + (1 - ema) * batch.fisher, Q)
        assert near(after(BATCHES[: count + 1], basis_every=basis_every, ema=ema), matrix, 1e-10)


def test_only_updates_with_a_basis_decompose() -> None:
    probe, state, counted = cb.probe("ekfac", fisher_type="empirical", basis_every=3), None, []
    for batch in [*BATCHES, *BATCHES[:2]]:
        with FlopMeter() as meter:
            state = probe.update(state, batch.instance)
        counted.append(meter.total - meter.passes)
    with FlopMeter() as meter:
        torch.linalg.eigh(BATCHES[0].A), torch.linalg.eigh(BATCHES[0].B)
    assert counted[0] == counted[3] == counted[6] > counted[1] + meter.total
    assert counted[1] == counted[2] == counted[4] == counted[5]


@pytest.mark.parametrize("options", [{"basis_every": 0}, {"ema": 1.0}, {"ema": -0.1}])
def test_wrong_bases_and_averages_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        cb.probe("ekfac", **options)


@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn"])
def test_the_diagonal_in_another_basis(name: str) -> None:
    """Groups of a convolution included: each has bases of its own."""
    torch.manual_seed(0)
    for layer in cb.probe("ekfac").fit(instance_of(name)).layers:
        G, M, D = layer.rotated.entries.shape
        left, right = (torch.linalg.qr(torch.randn(G, n, n).double())[0] for n in (M, D))
        Q = torch.block_diag(*[torch.kron(b, a) for b, a in zip(left, right, strict=True)])
        expected = (Q.T @ layer.rotated.to_dense() @ Q).diagonal()
        assert near(layer.rotated.entries_in(left, right).flatten(), expected)
