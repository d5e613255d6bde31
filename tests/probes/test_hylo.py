"""HyLo against the dense empirical Fisher of layers with reduced positions (O8)."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from cases import instance_of, truth
from torch import Tensor

import curvbench as cb
from curvbench.meters.cost import Stepper, flop_rows
from curvbench.parts import storage
from curvbench.parts.interpolation import interpolate

DENSE_LAYERS = ("mlp_tanh", "mlp_relu_no_bias", "mlp_gaussian", "mlp_many_samples", "dead_unit")


def near(value: Tensor, expected: Tensor, tolerance: float = 1e-12) -> bool:
    scale = max(float(expected.abs().max()), 1e-300)
    return bool(((value - expected) / scale).norm() <= tolerance * (expected / scale).norm())


def dense(name: str, **options: Any) -> Tensor:
    return cb.fit(cb.probe("hylo", **options), instance_of(name)).to_dense()


def scores(name: str, kind: str = "empirical") -> list[Tensor]:
    """Per layer the scores with reduced positions, (b, P_l): mean inputs, summed gradients, groups side by side."""
    found = []
    for groups in truth(name).factors(kind).values():
        rows = []
        for i, owner in enumerate(groups[0].owner):
            parts = [torch.outer(p.gradients[i].sum(0), p.inputs[owner].mean(0)).flatten() for p in groups]
            rows.append(torch.cat(parts))
        found.append(torch.stack(rows))
    return found


def reduced(name: str, kind: str = "empirical") -> Tensor:
    terms = len(truth(name).terms)
    return torch.block_diag(*[u.T @ u / terms for u in scores(name, kind)])


@pytest.mark.parametrize("name", [*DENSE_LAYERS, "nasty_cnn", "conv1d", "tokens", "dead_channel"])
@pytest.mark.parametrize("kind", ["empirical", "type-2"])
def test_all_scores_give_the_reduced_block(name: str, kind: str) -> None:
    """O8: KID and KIS (without replacement) of everything."""
    expected = reduced(name, kind)
    assert near(dense(name, fisher_type=kind, variant="kid", rank=1.0), expected)
    assert near(dense(name, fisher_type=kind, variant="kis", weights="none", rank=1.0), expected)


@pytest.mark.parametrize("name", DENSE_LAYERS)
def test_which_is_the_exact_layer_block_of_dense_layers(name: str) -> None:
    judge = truth(name)
    assert near(dense(name, rank=1.0), oracles.keep(judge.fisher("empirical"), oracles.layer_sizes(judge.model)))


def test_reduced_positions_are_not_exact_for_convolutions() -> None:
    judge = truth("nasty_cnn")
    exact = oracles.keep(judge.fisher("empirical"), oracles.layer_sizes(judge.model))
    assert oracles.relative(dense("nasty_cnn", rank=1.0), exact) > 0.1


@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn"])
def test_importance_weights_are_unbiased(name: str) -> None:
    """O8: the mean over draws tends to the block; without weights it does not."""

    def distance(draws: int, **options: Any) -> float:
        found = [dense(name, variant="kis", rank=0.5, seed=s, **options) for s in range(draws)]
        return oracles.relative(torch.stack(found).mean(0), reduced(name))

    assert distance(400) < 0.15 and distance(4) / distance(400) > 4
    assert distance(400, weights="none") > 0.2


@pytest.mark.parametrize("rank", [0.01, 0.15, 0.3])
def test_interpolation_is_the_projection_on_the_pivots(rank: float) -> None:
    """K ~ K[:, S] T with the least-squares T, with pivots by deflation."""
    name, blocks = "mlp_many_samples", []
    for u in scores(name):
        kernel, rest, chosen = u @ u.T, u @ u.T, list[int]()
        for _ in range(max(1, int(rank * len(u)))):
            chosen.append(int(rest.norm(dim=0).argmax()))
            kept = kernel[:, chosen]
            rest = kernel - kept @ torch.linalg.lstsq(kept, kernel).solution
        T = torch.linalg.lstsq(kernel[:, chosen], kernel).solution
        blocks.append(u[chosen].T @ T @ T.T @ u[chosen] / 20)
    assert near(dense(name, rank=rank), torch.block_diag(*blocks), 1e-9)


def test_pivots_beyond_the_rank_change_nothing() -> None:
    """12 of 20 scores, of rank 9 and 8: the block itself."""
    state = cb.probe("hylo", rank=0.6).fit(instance_of("mlp_many_samples"))
    assert [len(kept.kernel) for kept in state.layers] == [9, 8]
    assert near(dense("mlp_many_samples", rank=0.6), reduced("mlp_many_samples"))


def test_the_rank_is_a_share_of_the_batch() -> None:
    instance = instance_of("mlp_many_samples")
    for rank, expected in ((0.01, 1), (0.1, 2), (0.3, 6)):
        for variant in ("kis", "kid"):
            state = cb.probe("hylo", variant=variant, rank=rank).fit(instance)
            assert [len(kept.kernel) for kept in state.layers] == [expected] * 2


def test_a_kernel_of_low_rank_is_recovered_before_all_pivots_are_taken() -> None:
    u = torch.randn(8, 2).double() @ torch.randn(2, 5).double()
    chosen, T = interpolate(u @ u.T, 6)
    assert len(chosen) == 2 and near(T.T @ u[chosen], u, 1e-10)


def test_zero_kernels_have_one_pivot_and_no_curvature() -> None:
    chosen, T = interpolate(torch.zeros(4, 4).double(), 3)
    assert len(chosen) == 1 and bool(torch.isfinite(T).all())
    instance = instance_of("one_hot")
    for variant in ("kis", "kid"):
        for weights in ("importance", "none"):
            probe = cb.probe("hylo", variant=variant, weights=weights, rank=1.0)
            state = probe.refresh(probe.fit(instance))
            assert bool(torch.isfinite(probe.precondition(state, instance.gradient())).all())


@pytest.mark.parametrize("variant", ["kis", "kid"])
@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn", "tokens"])
def test_step_is_that_of_the_dense_matrix(name: str, variant: str) -> None:
    """O8: the r x r kernel against a dense solve."""
    instance, probe = instance_of(name), cb.probe("hylo", variant=variant, rank=0.5, damping=1e-2)
    step = probe.precondition(probe.refresh(probe.fit(instance)), instance.gradient())
    expected = oracles.natural_gradient(dense(name, variant=variant, rank=0.5), truth(name).gradient, 1e-2)
    assert near(step, expected, 1e-11)


@pytest.mark.parametrize(
    "options", [{"rank": 0.0}, {"rank": 1.1}, {"damping": 0.0}, {"variant": "x"}, {"weights": "x"}]
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        cb.probe("hylo", **options)


def test_too_many_kept_scores_are_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LIMIT_BYTES", 100)
    reason = cb.probe("hylo").unsupported(instance_of("mlp_tanh"))
    assert reason is not None and "GiB" in reason and "\n" not in reason


@pytest.mark.parametrize("variant", ["kis", "kid"])
def test_every_operation_is_counted(variant: str) -> None:
    for name in ("nasty_cnn", "conv1d", "tokens"):
        rows = flop_rows(Stepper(cb.probe("hylo", variant=variant, rank=0.5), instance_of(name)))
        assert not [row.reason for row in rows if row.metric == "flops.uncounted_ops" and row.value]
