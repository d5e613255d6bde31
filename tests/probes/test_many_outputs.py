"""Many outputs: blocks of cotangents, and the last layer in closed form, against what the oracles judge elsewhere.

The threshold of ``curvbench.instance.many`` is lowered, so that small cases take the paths of large ones.
"""

from __future__ import annotations

from typing import Any

import likelihoods
import pytest
import torch
import wide
from cases import ROWS, instance_of, weights_of
from judging import cases_with_regular_factors, near
from likelihoods import drawn
from torch import Tensor, nn

import curvbench as cb
from curvbench.instance import many
from curvbench.instance.tape import Tape

WITH_A_HEAD = [case.name for case in ROWS if instance_of(case.name).tape().head]
OTHERS = [("kfac", {"kfac_approx": "reduce"}), ("adafactor", {}), ("thor", {"split": 2})]
PROBES = [("kfac", {}), ("diag", {}), ("tkfac", {}), ("tnt", {}), *OTHERS]


@pytest.fixture
def many_outputs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The paths of many outputs for any number; the list gets the cotangents of every backward pass."""
    monkeypatch.setattr(many, "MANY", 1)
    passes: list[int] = []
    pull, pull_block = Tape.pull, Tape.pull_block
    monkeypatch.setattr(Tape, "pull", lambda *a, **k: (passes.append(1), pull(*a, **k))[1])
    monkeypatch.setattr(Tape, "pull_block", lambda s, c, *a: (passes.append(len(c)), pull_block(s, c, *a))[1])
    return passes


def matrix(name: str, instance: cb.Instance, **options: Any) -> Tensor:
    return cb.fit(cb.probe(name, **options), instance).to_dense()


def test_a_head_gives_the_outputs_themselves() -> None:
    assert WITH_A_HEAD == [case.name for case in ROWS]
    layer, x, y = nn.Linear(3, 4).double(), drawn(2, 3), torch.tensor([0, 3])
    for after in (nn.Hardtanh(), nn.LogSoftmax(1), nn.Unflatten(1, (2, 2)), nn.LayerNorm(4).double()):
        model = nn.Sequential(layer, after)
        targets = torch.zeros(2, 2, dtype=torch.int64) if isinstance(after, nn.Unflatten) else y
        assert cb.Instance(model, x, targets).tape().head is None


@pytest.mark.parametrize(("name", "options"), PROBES, ids=str)
def test_statistics_are_those_of_single_cotangents(name: str, options: dict[str, Any], many_outputs: list[int]) -> None:
    for case in (case.name for case in ROWS):
        instance = instance_of(case)
        found = matrix(name, instance, **options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(many, "MANY", 10**9)
            expected = matrix(name, instance, **options)
        assert near(found, expected, 1e-12), case
    assert max(many_outputs) > 1, "no pass had a block of cotangents"


@pytest.mark.parametrize("case", sorted(set(cases_with_regular_factors("type-2")) & set(WITH_A_HEAD)))
def test_ekfac(case: str, many_outputs: list[int]) -> None:
    found = matrix("ekfac", instance_of(case))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(many, "MANY", 10**9)
        assert near(found, matrix("ekfac", instance_of(case)), 1e-10)


def test_a_last_layer_takes_no_pass_of_its_own(many_outputs: list[int]) -> None:
    instance = weights_of(nn.Linear(4, 3).double(), drawn(5, 4), torch.tensor([0, 1, 2, 0, 1]))
    many_outputs.clear()
    for name in ("kfac", "ekfac", "diag", "tkfac", "thor"):
        matrix(name, instance)
    assert not many_outputs


@pytest.mark.parametrize(("name", "options"), [*PROBES, ("ekfac", {})], ids=str)
def test_layers_below_take_a_pass_per_input_of_the_last_one(
    name: str, options: dict[str, Any], many_outputs: list[int]
) -> None:
    """Fewer than a pass per output, for images and for tokens, with one class nearly certain."""
    for case in [*wide.CASES][: 4 if name == "ekfac" else None]:  # squares have no eigenbasis of their own
        instance = wide.instance_of(case)
        many_outputs.clear()
        found = matrix(name, instance, **options)
        passes = sum(many_outputs)
        many.MANY = 10**9
        many_outputs.clear()
        expected = matrix(name, instance, **options)
        many.MANY = 1
        assert near(found, expected, 1e-9 if name == "ekfac" else 1e-12), case
        assert passes < sum(many_outputs) or name == "tnt", "tnt takes all columns of the last layer"


def test_an_operation_without_a_batched_derivative_takes_one_cotangent_after_the_other(many_outputs: list[int]) -> None:
    class Twice(torch.autograd.Function):
        """Its derivative reads a number of the gradient, which a batch of gradients does not have."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return 2 * gradient if gradient.sum().item() < 1e9 else gradient

    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](Twice.apply(self[0](x)))

    instance = weights_of(Net(nn.Linear(3, 4), nn.Linear(4, 5)).double(), drawn(2, 3), torch.tensor([0, 4]))
    many_outputs.clear()
    found = matrix("kfac", instance)
    assert many_outputs == [4]
    many.MANY = 10**9
    assert near(found, matrix("kfac", instance), 1e-12)


@pytest.mark.parametrize("name", likelihoods.ROWS)
def test_hessians_are_those_of_the_cotangents(name: str) -> None:
    """The cotangents have their own tests against torch's Hessian; a loss that is a function has no closed form."""
    row = likelihoods.ROWS[name]
    instance = cb.Instance(row.model(), drawn(likelihoods.SAMPLES, 3), row.targets, row.loss)
    outputs = instance.outputs()
    hessians = many.hessians_at(instance, outputs)
    assert (hessians is None) == (row.mean is not None)
    if hessians is None:
        return
    factor = torch.stack(list(instance.cotangents(outputs, "type-2"))).flatten(1, -2)
    expected = torch.einsum("rnc,rnd->ncd", factor, factor)
    basis = drawn(expected.shape[1], 2)
    assert near(hessians.total(), expected.sum(0), 1e-14)
    assert near(hessians.total(slice(0, 2)), expected.sum(0)[:2, :2], 1e-14)
    assert near(hessians.diagonals(basis), torch.einsum("ck,ncd,dk->nk", basis, expected, basis), 1e-13)
    weights = torch.arange(len(expected)).double()
    assert near(hessians.weighted(weights).diagonals(), weights[:, None] * expected.diagonal(dim1=1, dim2=2), 1e-14)


def saturated(C: int = 200) -> tuple[Tensor, Tensor]:
    """Logits of which one is far above all others, by 3 to 60, and a basis."""
    logits = drawn(6, C)
    logits[:, 7] += torch.tensor([3.0, 10, 20, 30, 40, 60])
    return logits, torch.linalg.qr(drawn(C, C))[0]


def test_no_digit_is_lost_where_one_class_is_nearly_certain() -> None:
    """In float32, against sums over pairs of classes in float64, entry by entry."""
    logits, Q = saturated()
    hessians = cb.instance.likelihood.CrossEntropy().hessians(logits.float(), torch.zeros(6, dtype=torch.int64))
    p = logits.float().double().softmax(1)
    pairs = torch.combinations(torch.arange(p.shape[1]))
    weight = p[:, pairs[:, 0]] * p[:, pairs[:, 1]]
    differences = Q.float().double()[pairs[:, 0]] - Q.float().double()[pairs[:, 1]]
    torch.testing.assert_close(hessians.diagonals(Q.float()).double(), weight @ differences.square(), rtol=1e-4, atol=0)
    for n in range(6):
        exact = torch.zeros(200, 200, dtype=torch.float64)
        exact[pairs[:, 0], pairs[:, 1]] = exact[pairs[:, 1], pairs[:, 0]] = -weight[n]
        exact -= exact.sum(1).diag()
        only = hessians.weighted(torch.eye(6)[n])
        torch.testing.assert_close(only.total().double(), exact, rtol=3e-5, atol=1e-36)
        torch.testing.assert_close(only.diagonals()[n].double(), exact.diagonal(), rtol=3e-5, atol=1e-36)
