"""KL-Kronecker: the KL-optimal Kronecker product of every damped block, against dense divergences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import Truth, fisher_of, instance_of, truth, whole_of
from judging import group_blocks, near
from torch import Tensor, nn

import curvbench as cb
from curvbench.cells.measure import Fitted, accuracy_rows
from curvbench.operators import Dense, Diagonal
from curvbench.spec import Row

DAMPING = 1e-2
SOME = ("mlp_tanh", "nasty_cnn", "conv1d", "dead_channel", "tokens", "one_sample")  # groups, dead units, N < D
some = pytest.mark.parametrize("judge", [truth(name) for name in SOME], ids=SOME)


def eye(matrix: Tensor) -> Tensor:
    return torch.eye(len(matrix), dtype=torch.float64)


def divergence(approximation: Tensor, damped: Tensor) -> Tensor:
    """KL(N(0, damped) || N(0, approximation))."""
    ratio = torch.linalg.solve(approximation, damped)
    return (ratio.trace() - len(damped) - torch.logdet(ratio)) / 2


def dense_of(name: str, probe: str = "klkron", damping: float = DAMPING, **options: Any) -> Tensor:
    """The damped matrix."""
    fitted = cb.probe(probe, damping=damping, **options)
    damped = fitted.damped(fitted.refresh(fitted.fit(instance_of(name))))
    assert damped is not None
    return damped.to_dense()


def pairs(judge: Truth, found: Tensor, kind: str = "type-2") -> list[tuple[Tensor, Tensor, tuple[int, int]]]:
    """Per group the found block, the exact block and M and D."""
    made = zip(group_blocks(judge, found), group_blocks(judge, judge.fisher(kind)), strict=True)
    shapes = ((part.gradients[0].shape[1], part.inputs[0].shape[1]) for part, _ in group_blocks(judge, found))
    return [(block, exact, shape) for ((_, block), (_, exact)), shape in zip(made, shapes, strict=True)]


def from_inputs(four: Tensor, inverse_A: Tensor) -> Tensor:
    """The left factor that is best for a right factor, from the block as (M, D, M, D)."""
    return torch.einsum("iajb,ba->ij", four, inverse_A) / len(inverse_A)


def from_outputs(four: Tensor, inverse_B: Tensor) -> Tensor:
    return torch.einsum("iajb,ji->ab", four, inverse_B) / len(inverse_B)


def alternated(damped: Tensor, shape: tuple[int, int], A: Tensor) -> Tensor:
    """The optimum from a start A, by the alternation on the dense block."""
    four, last = damped.reshape(*shape, *shape), torch.zeros_like(damped)
    for _ in range(400):
        B = from_inputs(four, torch.linalg.inv(A))
        A = from_outputs(four, torch.linalg.inv(B))
        product = torch.kron(B, A)
        if near(last, product, 1e-9):
            return product
        last = product
    raise AssertionError("no optimum")


def random_spd(order: int, seed: int) -> Tensor:
    root = torch.randn(order, order, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return root @ root.T + 0.1 * torch.eye(order, dtype=torch.float64)


@pytest.mark.parametrize(
    ("judge", "kind"), [*((truth(name), "type-2") for name in SOME), (truth("conv1d"), "empirical")]
)
def test_is_the_optimum_from_another_start(judge: Truth, kind: str) -> None:
    found = dense_of(judge.case.name, fisher_type=kind)
    for block, exact, shape in pairs(judge, found, kind):
        damped = exact + DAMPING * eye(exact)
        assert near(block, alternated(damped, shape, random_spd(shape[1], 1)), 1e-6)
        trace = torch.linalg.solve(block, damped).trace()
        assert float(trace) == pytest.approx(len(block), rel=1e-7), "another multiple would be nearer"


@pytest.mark.parametrize("name", ["mlp_tanh", "conv1d"])
def test_divergence_is_stationary(name: str) -> None:
    """The gradient of the divergence in the logarithms of both factors vanishes; away from the optimum it does not."""
    for block, exact, (M, D) in pairs(truth(name), dense_of(name, tolerance=1e-12)):
        damped = exact + DAMPING * eye(exact)
        four = block.reshape(M, D, M, D)
        A = four.diagonal(dim1=0, dim2=2).sum(-1)
        B = four.diagonal(dim1=1, dim2=3).sum(-1) / A.trace()
        for factor, is_optimum in ((1.0, True), (1.1, False)):
            X, Y = torch.zeros_like(B).requires_grad_(), torch.zeros_like(A).requires_grad_()
            B_, A_ = torch.linalg.cholesky(B), torch.linalg.cholesky(A * factor)
            moved = torch.kron(B_ @ (eye(B) + X + X.T) @ B_.T, A_ @ (eye(A) + Y + Y.T) @ A_.T)
            slopes = torch.autograd.grad(divergence(moved, damped), [X, Y])
            assert (max(float(slope.abs().max()) for slope in slopes) <= 1e-8 * len(block)) == is_optimum


@some
def test_no_kronecker_product_is_nearer_in_divergence(judge: Truth) -> None:
    """Factored damping stays in the family."""
    name = judge.case.name
    others = [
        dense_of(name, "kfac", damping_rule="factored"),
        dense_of(name, "kfac", damping_rule="pi"),
        dense_of(name, "tkfac"),
        dense_of(name, "thor"),
    ]
    best = pairs(judge, dense_of(name))
    for other in others:
        for (block, exact, _), (rival, _, _) in zip(best, pairs(judge, other), strict=True):
            damped = exact + DAMPING * eye(exact)
            assert float(divergence(block, damped)) <= float(divergence(rival, damped)) + 1e-8


def test_exact_damping_is_outside_of_the_family() -> None:
    """A control: B (x) A + damping I is no Kronecker product, and a large damping makes it nearer."""
    found, rival = dense_of("mlp_tanh", damping=1.0), dense_of("mlp_tanh", "tkfac", 1.0, damping_rule="exact")
    blocks = zip(pairs(truth("mlp_tanh"), found), pairs(truth("mlp_tanh"), rival), strict=True)
    nearer = [
        float(divergence(other, exact + eye(exact))) < float(divergence(block, exact + eye(exact)))
        for (block, exact, _), (other, _, _) in blocks
    ]
    assert any(nearer)


@some
def test_twins_bound_two_distances(judge: Truth) -> None:
    """KPSVD is nearer in Frobenius norm, and further in divergence once it is damped as a Kronecker product."""
    undamped = cb.fit(cb.probe("kpsvd"), instance_of(judge.case.name)).to_dense()
    for (block, exact, _), (rival, _, _) in zip(
        pairs(judge, dense_of(judge.case.name)), pairs(judge, undamped), strict=True
    ):
        assert float((rival - exact).norm()) <= float((block - exact).norm()) + 1e-9


@pytest.mark.parametrize("damping", [1e-6, 0.3])
def test_a_kronecker_block_is_recovered(damping: float) -> None:
    """Of a linear model with Gaussian loss F + damping I is I (x) (E[x x^T] + damping I)."""
    x, y = torch.randn(9, 5, generator=torch.Generator().manual_seed(1)).double(), torch.zeros(9, 3).double()
    instance = cb.Instance(nn.Linear(5, 3, bias=False).double(), x, y, "gaussian")
    found = cb.fit(cb.probe("klkron", damping=damping, iterations=3), instance).to_dense()
    expected = torch.kron(torch.eye(3).double(), x.T @ x / 9 + damping * torch.eye(5).double())
    assert near(found, expected, 1e-10)


def test_a_vector_has_its_exact_damped_block() -> None:
    instance = whole_of("tokens")
    found = cb.fit(cb.probe("klkron", damping=DAMPING), instance)
    exact = cb.exact_fisher(instance)
    vectors = [layer for layer in instance.layers if layer.kind == "vector"]
    assert vectors
    for layer in vectors:
        expected = exact.layer(layer.name).to_dense()
        assert near(found.block(layer.start, layer.start + layer.size).to_dense(), expected + DAMPING * eye(expected))


# --- the matrix of a probe that represents the damped Fisher ------------------------------------------------


def rows_of(probe: cb.Probe, name: str) -> list[Row]:
    return list(accuracy_rows(Fitted.of(probe, instance_of(name)), fisher_of(name)))


@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn", "one_hot"])
def test_a_second_error_is_against_the_damped_fisher(name: str) -> None:
    """In every scope, against dense matrices; the first is against F."""
    rows = {(row.metric, row.scope): row for row in rows_of(cb.probe("klkron", damping=DAMPING), name)}
    found, exact = dense_of(name), truth(name).fisher()
    damped = exact + DAMPING * eye(exact)
    scopes = {layer.name: layer.slice for layer in instance_of(name).layers} | {"network": slice(None)}
    for scope, part in scopes.items():
        block, target = found[part, part], damped[part, part]
        row = rows["error.damped", scope]
        assert row.method == "damping 0.01"
        assert row.value == pytest.approx(float((block - target).norm() / target.norm()), abs=1e-7)
        if float(exact[part, part].norm()):
            relative = float((block - exact[part, part]).norm() / exact[part, part].norm())
            assert rows["error.relative", scope].value == pytest.approx(relative, rel=1e-6)
    blocks = sum(float((found[p, p] - damped[p, p]).square().sum()) for s, p in scopes.items() if s != "network")
    whole = sum(float(damped[p, p].square().sum()) for s, p in scopes.items() if s != "network")
    assert rows["error.damped", "layer blocks"].value == pytest.approx((blocks / whole) ** 0.5, abs=1e-7)


def test_other_probes_have_no_second_error() -> None:
    for name in ("kfac", "tkfac", "shampoo"):
        assert "error.damped" not in {row.metric for row in rows_of(cb.probe(name), "mlp_tanh")}


def test_the_damping_is_added_once() -> None:
    """The damped matrix is the represented one, and so is that whose condition is shown."""
    probe, dense = cb.probe("klkron", damping=DAMPING), dense_of("mlp_tanh")
    state = probe.fit(instance_of("mlp_tanh"))
    assert torch.equal(probe.operator(state).to_dense(), dense)
    (row,) = (row for row in rows_of(probe, "mlp_tanh") if row.metric == "health.condition")
    values = torch.linalg.eigvalsh(dense)
    assert row.value == pytest.approx(float(values[-1] / values[0]), rel=1e-8) and row.method == "damping included"


@pytest.mark.parametrize(
    ("key", "value"),
    [("damping", 0.0), ("iterations", 0), ("tolerance", 0.0), ("tolerance", 1.0), ("tolerance", math.nan)],
)
def test_bad_limits_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key) as caught:
        cb.probe("klkron", **{key: value})
    assert "\n" not in str(caught.value)


def test_rounds_that_do_not_reach_the_tolerance_are_an_error() -> None:
    """What is not the optimum is no bound."""
    with pytest.raises(ValueError, match="raise iterations or tolerance"):
        cb.fit(cb.probe("klkron", iterations=2, tolerance=1e-12), instance_of("nasty_cnn"))


def test_a_large_vector_has_its_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curvbench.parts.others.LARGEST_BLOCK", 5)
    instance = whole_of("tokens")
    state = cb.probe("klkron").fit(instance)
    kinds = {type(block) for layer, block in zip(instance.layers, state.factors, strict=True) if layer.kind == "vector"}
    assert kinds <= {Dense, Diagonal} and Diagonal in kinds
