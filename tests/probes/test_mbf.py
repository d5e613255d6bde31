"""Mini-block Fisher: its blocks are parts of the dense matrix, or means of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import oracles
import pytest
import torch
from cases import Case, Truth, instance_of, truth
from judging import near, rescaled
from torch import Tensor, nn

import curvbench as cb
from curvbench.meters.cost import published_cost
from curvbench.parts import storage

KINDS = ("type-2", "empirical")
CHOICES = tuple(itertools.product(("avg", "all"), repeat=2))


def dense_of(case: str, **hyperparameters: Any) -> Tensor:
    return cb.fit(cb.probe("mbf", **hyperparameters), instance_of(case)).to_dense()


def mini_sizes(layer: Any) -> Iterator[int]:
    """Sizes of the blocks of one layer in the order of its entries."""
    for _ in layer.weight:
        if isinstance(layer, nn.Linear):
            yield oracles.matrix_size(layer) // len(layer.weight)
            continue
        yield from [layer.weight[0, 0].numel()] * layer.weight.shape[1]
        if layer.bias is not None:
            yield 1


def averaged(blocks: list[Tensor], sort: list[bool]) -> list[Tensor]:
    """Each block replaced by the mean of those of its sort: kernels, or biases."""
    means = {
        kind: torch.stack([b for b, s in zip(blocks, sort, strict=True) if s == kind]).mean(0) for kind in set(sort)
    }
    return [means[s] for s in sort]


def expected(judge: Truth, kind: str, fc: str, conv: str) -> Tensor:
    """Cut out of the dense matrix."""
    parts, layers = [], oracles.covered_layers(judge.model)
    for name, part in oracles.layer_slices(judge.model).items():
        layer, sizes = layers[name], list(mini_sizes(layers[name]))
        blocks = oracles.diagonal_blocks(judge.fisher(kind)[part, part], sizes)
        if (fc if isinstance(layer, nn.Linear) else conv) == "avg":
            per_row = len(sizes) // len(layer.weight)
            is_bias = not isinstance(layer, nn.Linear) and layer.bias is not None
            blocks = averaged(blocks, [is_bias and i % per_row == per_row - 1 for i in range(len(sizes))])
        parts += blocks
    return torch.block_diag(*parts)


@pytest.mark.parametrize(("fc", "conv"), CHOICES)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_those_of_the_dense_matrix(case: Case, judge: Truth, kind: str, fc: str, conv: str) -> None:
    assert near(dense_of(case.name, fisher_type=kind, fc=fc, conv=conv), expected(judge, kind, fc, conv))


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_the_projections(case: Case, judge: Truth, kind: str) -> None:
    """A finer block structure has the larger error; each projection keeps the trace and obeys Pythagoras."""
    dense, scale = judge.fisher(kind), float(judge.fisher(kind).norm())
    errors = []
    for name, choices in (("layer", {}), ("unit", {}), ("mbf", {"fc": "all"}), ("diag", {})):
        found = cb.fit(cb.probe(name, fisher_type=kind, **choices), instance_of(case.name)).to_dense()
        errors.append(oracles.relative(found, dense))
        assert float((found / scale).norm()) ** 2 + errors[-1] ** 2 == pytest.approx(1, abs=judge.rounding)
        assert float(found.trace()) == pytest.approx(float(dense.trace()), rel=1e-12)
    assert all(finer <= coarser + judge.rounding for finer, coarser in itertools.pairwise(errors))


@pytest.mark.parametrize("kind", KINDS)
def test_averages_are_projections_too(case: Case, judge: Truth, kind: str) -> None:
    """Means of blocks project on matrices with equal blocks, and are no nearer than the blocks themselves."""
    dense, scale = judge.fisher(kind), float(judge.fisher(kind).norm())
    every = oracles.relative(dense_of(case.name, fisher_type=kind, fc="all", conv="all"), dense)
    for fc, conv in CHOICES:
        found = dense_of(case.name, fisher_type=kind, fc=fc, conv=conv)
        error = oracles.relative(found, dense)
        assert every <= error + judge.rounding
        assert float((found / scale).norm()) ** 2 + error**2 == pytest.approx(1, abs=judge.rounding)
        assert float(found.trace()) == pytest.approx(float(dense.trace()), rel=1e-12)


def test_orders_are_strict_where_something_is_left_out() -> None:
    """The control: on a convolutional network no two of them are the same matrix."""
    dense = truth("conv1d").fisher()
    names = (("unit", {}), ("mbf", {"fc": "all"}), ("diag", {}))
    found = [cb.fit(cb.probe(name, **choices), instance_of("conv1d")).to_dense() for name, choices in names]
    errors = [oracles.relative(matrix, dense) for matrix in found]
    assert errors[0] + 1e-3 < errors[1] < errors[2] - 1e-3
    for choices in ({"fc": "avg"}, {"fc": "all", "conv": "avg"}):
        assert oracles.relative(dense_of("conv1d", **choices), dense) > errors[1] + 1e-3


@pytest.mark.parametrize(("fc", "conv"), CHOICES)
@pytest.mark.parametrize("name", ["padded_cnn", "nasty_cnn", "tokens"])
def test_measured_error_is_that_of_the_dense_matrix(name: str, fc: str, conv: str) -> None:
    """The bias after the kernels of its row, and inner products without the dense Fisher."""
    operator = cb.fit(cb.probe("mbf", fc=fc, conv=conv), instance_of(name))
    found = cb.errors(operator, cb.exact_fisher(instance_of(name)))["relative"]
    assert found == pytest.approx(oracles.relative(operator.to_dense(), truth(name).fisher()), rel=1e-9)


@pytest.mark.parametrize("name", ["mlp_gaussian", "tokens_gaussian", "padded_cnn"])
@pytest.mark.parametrize(("fc", "conv"), CHOICES)
def test_scales_with_the_loss(name: str, fc: str, conv: str) -> None:
    """Scores times c make the empirical matrix c^2 times as large."""
    probe = cb.probe("mbf", fisher_type="empirical", fc=fc, conv=conv)
    found, before = (cb.fit(probe, instance).to_dense() for instance in (rescaled(name, 3.0), instance_of(name)))
    assert near(found, 9 * before, 1e-12)


def test_blocks_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cb.probe("mbf", fc="all").unsupported(instance_of("mlp_tanh")) is None
    monkeypatch.setattr(storage, "LIMIT_BYTES", 1000)
    assert "GiB" in str(cb.probe("mbf", fc="all").unsupported(instance_of("mlp_tanh")))


@pytest.mark.parametrize("key", ["fc", "conv"])
def test_unknown_choices_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        cb.probe("mbf", **{key: "some"})


def test_published_cost_depends_on_the_kernel() -> None:
    """k_h k_w entries per block of a convolution, D per block of a Linear."""
    sizes = instance_of("nasty_cnn").sizes
    assert [size.kernel for size in sizes.values()] == [9, 6, 9, 1, 0]
    first, *_, last = sizes.values()
    probe = cb.probe("mbf")
    assert published_cost(probe, [first], 5, 2)["invert"] == 4 * 2 * 9**3 / 6
    forming, solving = 5 * 11**2 + 10 * 3, 3 * 11**2
    expected = {"statistics": forming, "invert": 11**3 / 6, "precondition": solving, "memory": 11**2}
    assert published_cost(probe, [last], 5, 2) == pytest.approx(expected)
