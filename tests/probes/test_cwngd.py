"""CW-NGD against blocks cut out of the dense empirical Fisher, and the errata that change results."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from cases import Case, Truth, instance_of, mlp, truth
from torch import Tensor, nn

import curvbench as cb
from curvbench.meters.cost import Stepper, flop_rows


def near(value: Tensor, expected: Tensor, tolerance: float = 1e-12) -> bool:
    scale = max(float(expected.abs().max()), 1e-300)
    return bool(((value - expected) / scale).norm() <= tolerance * (expected / scale).norm())


def step_of(instance: cb.Instance, **options: Any) -> Tensor:
    probe = cb.probe("cwngd", **options)
    return probe.precondition(probe.refresh(probe.fit(instance)), instance.gradient())


def unit_blocks(judge: Truth, kind: str = "empirical") -> Tensor:
    """Everything of the exact mean Fisher outside the blocks of output units and channels set to zero."""
    return oracles.keep(judge.fisher(kind), oracles.unit_sizes(judge.model))


def test_blocks_are_the_sum_of_the_exact_ones(case: Case, judge: Truth, instance: cb.Instance) -> None:
    """A block is the exact one of its unit, or of its channel in a convolution, summed over the batch."""
    expected = instance.terms * unit_blocks(judge)
    assert near(cb.fit(cb.probe("cwngd"), instance).to_dense(), expected)
    assert near(cb.fit(cb.probe("cwngd", scaling="mean"), instance).to_dense(), expected / instance.terms)


def test_type_2_is_the_unit_probe(case: Case, judge: Truth, instance: cb.Instance) -> None:
    found = cb.fit(cb.probe("cwngd", fisher_type="type-2", scaling="mean"), instance).to_dense()
    assert near(found, unit_blocks(judge, "type-2"))


@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn", "conv1d", "tokens", "mlp_many_samples"])
def test_step_is_that_of_the_dense_blocks(name: str) -> None:
    """Woodbury (few samples) and Cholesky (many samples) of each unit are the dense solve."""
    instance, blocks = instance_of(name), instance_of(name).terms * unit_blocks(truth(name))
    expected = oracles.natural_gradient(blocks, truth(name).gradient, 1e-2)
    assert near(step_of(instance, damping=1e-2), expected, 1e-11)


def test_both_ways_to_solve_are_taken() -> None:
    """Rows fewer than inputs are kept as they are; else blocks are."""

    def shapes(name: str) -> list[tuple[int, ...]]:
        return [tuple(m.shape[1:]) for m in cb.probe("cwngd").fit(instance_of(name)).matrices]

    assert shapes("mlp_many_samples") == [(3, 3), (4, 4)]
    assert shapes("nasty_cnn") == [(5, 18), (5, 13), (5, 10), (5, 6), (5, 11)]


def test_damping_zero_takes_cholesky_and_refuses_singular_blocks() -> None:
    few = cb.probe("cwngd", damping=0.0)
    with pytest.raises(ValueError, match="damping"):
        few.refresh(few.fit(instance_of("one_sample")))
    instance = instance_of("mlp_many_samples")
    expected = torch.linalg.solve(20 * unit_blocks(truth("mlp_many_samples")), instance.gradient())
    assert near(step_of(instance, damping=0.0), expected, 1e-8)


# --- errata -----------------------------------------------------------------------------------------------


def test_sum_and_mean_dictionary() -> None:
    """E-C1: (N F + gamma)^-1 g = 1/N (F + gamma/N)^-1 g: gamma on the SUM is not gamma on the mean."""
    instance = instance_of("mlp_tanh")
    N = instance.terms
    summed = step_of(instance, damping=1e-2)
    assert near(summed, step_of(instance, damping=1e-2 / N, scaling="mean") / N, 1e-11)
    assert oracles.relative(summed, step_of(instance, damping=1e-2, scaling="mean")) > 0.5


def test_scores_of_a_mean_loss() -> None:
    """Per-sample gradients that hold 1/N already: Algorithm 1 becomes N (F + gamma N)^-1 g, N^2 in the damping."""
    instance = instance_of("mlp_tanh")
    N = instance.terms
    found = step_of(instance, damping=1e-3, score_scale="divided_by_N")
    assert near(found, N * step_of(instance, damping=1e-3 * N, scaling="mean"), 1e-11)
    dense = cb.fit(cb.probe("cwngd", score_scale="divided_by_N"), instance).to_dense()
    assert near(dense, unit_blocks(truth("mlp_tanh")) / N)


def test_units_are_contiguous_in_rows_of_the_weight() -> None:
    """E-C3: outputs are columns of the paper's W; chained by ITS rows, as printed, blocks would mix all units."""
    model, samples, gaussian = mlp(3, 2).double(), torch.randn(5, 3).double(), torch.randn(5, 2).double()
    instance = cb.Instance(model, samples, gaussian, loss="gaussian")
    terms = oracles.loss_terms(model, samples, gaussian, "gaussian")
    dense, (inputs, outputs) = oracles.empirical_fisher(terms, "gaussian"), (4, 2)
    ours = cb.fit(cb.probe("cwngd", scaling="mean"), instance).to_dense()
    assert near(ours, oracles.keep(dense, [inputs] * outputs))
    printed_order = torch.arange(inputs * outputs).reshape(outputs, inputs).T.flatten()
    printed = dense[printed_order][:, printed_order]
    for i in range(outputs):
        mixed = printed[i * inputs : (i + 1) * inputs, i * inputs : (i + 1) * inputs]
        unit = dense[i * inputs : (i + 1) * inputs, i * inputs : (i + 1) * inputs]
        assert oracles.relative(mixed, unit) > 0.1


def test_the_first_layer_is_preconditioned_too() -> None:
    """E-C6: Algorithm 1 as printed ends at l = 2 and leaves W_1 as it was."""
    instance, judge = instance_of("mlp_tanh"), truth("mlp_tanh")
    blocks, printed = instance.terms * unit_blocks(judge), torch.zeros(judge.size).double()
    slices = list(oracles.layer_slices(judge.model).values())
    for part in slices[:0:-1]:
        printed[part] = oracles.natural_gradient(blocks[part, part], judge.gradient[part], 1e-2)
    found = step_of(instance, damping=1e-2)
    assert near(found[slices[1].start :], printed[slices[1].start :], 1e-11)
    assert float(printed[slices[0]].norm()) == 0 < float(found[slices[0]].norm())


# --- bounds -----------------------------------------------------------------------------------------------


def test_single_precision_solves_near_the_float64_step() -> None:
    """Woodbury with a small damping cancels: the small system is solved in float64."""
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(40, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(12, 40), torch.arange(12) % 3
    instance = cb.Instance(model, x, y)
    exact = step_of(instance.to(torch.float64), damping=1e-3)
    assert oracles.relative(step_of(instance, damping=1e-3).double(), exact) < 1e-3


@pytest.mark.parametrize("key", ["scaling", "score_scale"])
def test_wrong_options_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        cb.probe("cwngd", **{key: "nonsense"})


@pytest.mark.parametrize("name", ["mlp_many_samples", "nasty_cnn", "tokens"])
def test_every_operation_is_counted(name: str) -> None:
    rows = list(flop_rows(Stepper(cb.probe("cwngd"), instance_of(name))))
    assert not [row.reason for row in rows if row.metric == "flops.uncounted_ops" and row.value]
