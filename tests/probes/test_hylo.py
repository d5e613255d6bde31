"""HyLo against the dense empirical Fisher of layers with reduced positions."""

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
    """KID and KIS (without replacement) that keep every score represent the reduced block."""
    expected = reduced(name, kind)
    assert near(dense(name, fisher_type=kind, variant="kid", rank=1.0), expected)
    assert near(dense(name, fisher_type=kind, variant="kis", weights="none", rank=1.0), expected)
    assert near(dense(name, fisher_type=kind, variant="kid_public", rank=1.0), expected, 1e-9)


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
    """The mean over draws tends to the block; without weights the mean does not."""

    def distance(draws: int, **options: Any) -> float:
        found = [dense(name, variant="kis", rank=0.5, seed=s, **options) for s in range(draws)]
        return oracles.relative(torch.stack(found).mean(0), reduced(name))

    few, many, unweighted = distance(4), distance(100), distance(100, weights="none")
    assert many < 0.1 and few / many > 4
    assert unweighted > 2 * many


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


def public_layer(u: Tensor, damping: float, rank: float) -> tuple[Tensor, Tensor]:
    """Kept scores and inner matrix of a layer as the public code goes: sort by norm, unpivoted QR, invert."""
    u = u[u.square().sum(1).argsort(descending=True)]
    r = max(1, int(rank * len(u)))
    Q, R = torch.linalg.qr(u @ u.T)
    T = torch.cat([torch.eye(r).double(), torch.linalg.inv(R[:r, :r]) @ R[:r, r:]], dim=1)
    residual = torch.cat([torch.zeros(len(u), r).double(), Q[:, r:] @ R[r:, r:]], dim=1)
    return u[:r], T @ torch.linalg.inv(residual + damping * torch.eye(len(u)).double()) @ T.T


@pytest.mark.parametrize("name", ["mlp_tanh", "mlp_gaussian", "nasty_cnn"])
@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_public_form_has_the_symmetric_part_of_its_inner_matrix(name: str, damping: float) -> None:
    blocks = []
    for u in scores(name):
        kept, inner = public_layer(u, damping, 0.5)
        values, basis = torch.linalg.eigh((inner + inner.T) / 2)
        blocks.append(kept.T @ (basis * values.clamp_min(0)) @ basis.T @ kept * damping / len(kept))
    found = dense(name, variant="kid_public", rank=0.5, damping=damping)
    assert near(found, torch.block_diag(*blocks), 1e-8)
    assert oracles.relative(found, dense(name, rank=0.5)) > 0.1


def test_public_form_steps_near_the_public_code() -> None:
    """Which solves with the inner matrix as it is: (g - U (M^-1 + U^T U / r)^-1 U^T g / r) / damping, not symmetric."""
    instance, probe, damping = (
        instance_of("mlp_tanh"),
        cb.probe("hylo", variant="kid_public", rank=0.5, damping=0.1),
        0.1,
    )
    steps = []
    for u, part in zip(scores("mlp_tanh"), oracles.layer_slices(truth("mlp_tanh").model).values(), strict=True):
        (kept, inner), g = public_layer(u, damping, 0.5), instance.gradient()[part]
        small = torch.linalg.inv(inner) + kept @ kept.T / len(kept)
        steps.append((g - kept.T @ torch.linalg.solve(small, kept @ g) / len(kept)) / damping)
    found = probe.precondition(probe.refresh(probe.fit(instance)), instance.gradient())
    assert oracles.relative(found, torch.cat(steps)) < 0.05
    pivoted = cb.probe("hylo", rank=0.5, damping=damping)
    other = pivoted.precondition(pivoted.refresh(pivoted.fit(instance)), instance.gradient())
    assert oracles.relative(other, torch.cat(steps)) > 0.3


def test_pivots_beyond_the_rank_change_nothing() -> None:
    """12 of 20 scores, of rank 9 and 8: the block itself."""
    state = cb.probe("hylo", rank=0.6).fit(instance_of("mlp_many_samples"))
    assert [len(kept.kernel) for kept in state.layers] == [9, 8]
    assert near(dense("mlp_many_samples", rank=0.6), reduced("mlp_many_samples"))


def test_the_rank_is_a_share_of_the_batch() -> None:
    instance = instance_of("mlp_many_samples")
    for rank, expected in ((0.01, 1), (0.1, 2), (0.3, 6)):
        for variant in ("kis", "kid", "kid_public"):
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


@pytest.mark.parametrize("variant", ["kis", "kid", "kid_public"])
@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn", "tokens"])
def test_step_is_that_of_the_dense_matrix(name: str, variant: str) -> None:
    """The solve with the r x r kernel is the dense solve."""
    instance, probe = instance_of(name), cb.probe("hylo", variant=variant, rank=0.3, damping=1e-2)
    step = probe.precondition(probe.refresh(probe.fit(instance)), instance.gradient())
    matrix = dense(name, variant=variant, rank=0.3, damping=1e-2)
    assert near(step, oracles.natural_gradient(matrix, truth(name).gradient, 1e-2), 1e-11)


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


@pytest.mark.parametrize("variant", ["kis", "kid", "kid_public"])
def test_every_operation_is_counted(variant: str) -> None:
    for name in ("nasty_cnn", "conv1d", "tokens"):
        rows = flop_rows(Stepper(cb.probe("hylo", variant=variant, rank=0.5), instance_of(name)))
        assert not [row.reason for row in rows if row.metric == "flops.uncounted_ops" and row.value]


@pytest.mark.parametrize(("rank", "same"), [(1.0, True), (0.3, False)])
def test_a_choice_of_columns_depends_on_the_root_of_the_likelihood_s_curvature(rank: float, same: bool) -> None:
    """What the notes of ``hylo`` say: U and U Q have one U U^T, and one matrix where all of their columns are kept."""
    torch.manual_seed(0)
    N, R, probe = 12, 3, cb.probe("hylo", fisher_type="type-2", rank=rank)
    a, g = torch.randn(N, 1, 5).double().repeat(R, 1, 1), torch.randn(R, N, 1, 4).double()
    turned = torch.einsum("rs,rngm->sngm", torch.linalg.qr(torch.randn(R, R).double())[0], g)
    found = []
    for slopes in (g, turned):
        kept = probe._chosen(a, slopes.flatten(0, 1), N, torch.Generator())
        V = torch.einsum("rgm,rgd->gmdr", kept.gradients, kept.inputs).flatten(0, 2) @ kept.mixing
        found.append(V @ V.T)
    assert near(found[1], found[0], 1e-10) == same and (same or oracles.relative(found[1], found[0]) > 0.05)
