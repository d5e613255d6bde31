"""A sample's score is the derivative of its own terms in this batch, whatever its rows and its weights go through."""

from __future__ import annotations

from collections.abc import Callable

import oracles
import pytest
from couplings import COUPLED, UNCOUPLED, Net, batch, made, twice_if_hard, with_capacity
from judging import by_parameters, near
from torch import Tensor

import curvbench as cb
from curvbench.fisher.uncovered import uncovered_trace


def assert_exact(instance: cb.Instance) -> None:
    """Its Fisher is that of one backward pass per number of the outputs."""
    terms = oracles.batch_terms(instance.model, instance.inputs, instance.targets)
    for kind in ("type-2", "empirical"):
        found = by_parameters(instance, cb.exact_fisher(instance, kind).to_dense())
        assert near(found, oracles.fisher(terms, "cross_entropy", kind))
    assert instance.coverage == 1 and not instance.left_out


@pytest.mark.parametrize("samples", [4, 17])
@pytest.mark.parametrize("act", COUPLED)
def test_coupled_samples_have_the_scores_of_their_own_terms(act: Callable[[Net, Tensor], Tensor], samples: int) -> None:
    instance = cb.Instance(made(lambda: Net(act)), *batch(samples))
    assert instance.coupled or (act is twice_if_hard and samples == 4)  # where no other sample there changes the choice
    assert_exact(instance)


@pytest.mark.parametrize("name", UNCOUPLED)
def test_rows_in_any_order_and_weights_with_several_uses(name: str) -> None:
    instance = cb.Instance(made(UNCOUPLED[name]), *batch())
    assert not instance.coupled
    assert_exact(instance)
    some = instance.part(slice(3, 8))
    some.terms = 5
    assert_exact(some)


@pytest.mark.parametrize("seed", range(3))
def test_a_choice_of_samples_is_a_constant(seed: int) -> None:
    """Whether the others change it depends on the batch."""
    assert_exact(cb.Instance(made(lambda: Net(with_capacity)), *batch(seed=seed)))


def test_coupled_samples_are_taken_together() -> None:
    instance = cb.Instance(made(lambda: Net(COUPLED[0])), *batch(), parameters="weights")
    for take in (lambda: instance.part(slice(4)), lambda: instance.draw(4, 0)):
        with pytest.raises(ValueError, match=r"are coupled.*take the whole batch at once") as caught:
            take()
        assert "\n" not in str(caught.value)


def test_the_trace_outside_of_coupled_samples() -> None:
    """Where the weights of layers are compared alone, what is left outside has the scores of its own terms too."""
    model, (x, y) = made(lambda: Net(COUPLED[0])), batch()
    whole = cb.exact_fisher(cb.Instance(model, x, y))
    weights = cb.Instance(model, x, y, parameters="weights")
    inside = cb.exact_fisher(weights).trace()
    assert inside + uncovered_trace(weights) == pytest.approx(whole.trace(), rel=1e-12)
    assert uncovered_trace(weights) > 0
