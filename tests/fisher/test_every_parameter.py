"""The exact Fisher over every trainable parameter against plain autograd, on the models of the zoo."""

from __future__ import annotations

import oracles
import pytest
import torch
from torch import Tensor, nn
from zoo import LARGE, SMALL, Case, Problem, oracle

import curvbench as cb

# Rows of a parameter whose gradient is zero but for rounding are no larger than a share of the whole matrix: this one,
# or a ten-thousandth of the tolerance where a model computes in float32 inside.
ROUNDING = 1e-15

QUIET = pytest.mark.filterwarnings("ignore")  # because libraries warn about themselves
# One of a kind each; the others run with ``pytest -m zoo``.
ALWAYS = ("gpt2", "llama_tied", "mixtral", "mamba", "bert_masked_words", "albert", "deberta_v2", "t5", "whisper", "vit")
ALWAYS += ("swin", "resnet", "segformer", "clip", "peft_lora", "peft_dora", "peft_ia3")
EVERY = [
    *(pytest.param(case, id=case.name) for case in SMALL),
    *(pytest.param(c, id=c.name, marks=(QUIET, *([] if c.name in ALWAYS else [pytest.mark.zoo]))) for c in LARGE),
]


def instance_of(problem: Problem) -> cb.Instance:
    return cb.Instance(problem.model, problem.inputs, problem.targets, loss=problem.loss, **problem.options)


def entries(positions: dict[str, Tensor], names: list[str]) -> Tensor:
    """Where the named parameters lie in the oracle's matrix, in the oracle's order."""
    return torch.cat([torch.empty(0).long(), *(oracle.real(positions[name]).long() for name in names)])


def refuse_far(found: Tensor, expected: Tensor, rows: dict[str, Tensor], tolerance: float) -> None:
    """Fail if the matrices differ, or the rows of any one parameter relative to these rows."""
    whole, difference = float(expected.norm()), found - expected
    assert float(difference.norm()) <= tolerance * whole
    for name, index in rows.items():
        allowed = 10 * tolerance * float(expected[index].norm()) + max(ROUNDING, 1e-4 * tolerance) * whole
        assert float(difference[index].norm()) <= allowed, name


def refuse_wrong_fisher(case: Case) -> None:
    """Compare an instance's exact Fisher with the oracle, in the oracle's order of parameters."""
    problem = case.build()
    own = dict(problem.model.named_parameters())
    instance, expected = instance_of(problem), oracle.fisher(*problem[:4])
    assert all(parameter is own[name] for name, parameter in problem.model.named_parameters())
    positions = oracle.positions(problem.model)
    assert set(instance.left_out) <= case.left_out, dict(instance.left_out)
    assert case.coupled in (None, instance.coupled)

    covered = [name for name in positions if name not in instance.left_out]
    order = instance.pack({name: positions[name] for name in covered}).long()
    assert torch.equal(order.sort().values, entries(positions, covered))
    for name, tensor in instance.unpack(order.to(instance.dtype)).items():
        assert torch.equal(oracle.real(tensor).long(), oracle.real(positions[name]).long()), name

    found = torch.zeros_like(expected)
    fisher = cb.exact_fisher(instance, precision="native").to_dense().to(expected.dtype)
    found[order[:, None], order] = fisher
    refuse_far(found, expected, {name: entries(positions, [name]) for name in positions}, case.tolerance)


@pytest.mark.parametrize("case", EVERY)
def test_every_model(case: Case) -> None:
    refuse_wrong_fisher(case)


@pytest.mark.parametrize("loss", ["cross_entropy", "gaussian"])
def test_the_oracle_agrees_with_the_other_one(loss: str) -> None:
    """On a network of linear layers alone, with tokens and an ignored one; that oracle packs [W | b]."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    inputs, targets = torch.randn(3, 2, 4).double(), torch.tensor([[0, 1], [2, oracle.IGNORED], [1, 1]])
    targets = torch.randn(3, 2, 3).double() if loss == "gaussian" else targets
    order = oracles.pack(model, oracle.positions(model)).long()
    expected = oracles.fisher(oracles.loss_terms(model, inputs, targets, loss), loss, "type-2")
    assert oracles.relative(oracle.fisher(model, inputs, targets, loss)[order][:, order], expected) <= 1e-13


def test_coupled_samples_own_their_own_outputs_derivatives() -> None:
    """F = (1/N) J^T J if the loss is Gaussian, whatever the samples share, with J of all outputs of the batch."""
    w, mix, x = torch.randn(3, 2).double(), torch.randn(4, 4).double(), torch.randn(4, 3).double()
    layer = nn.Linear(3, 2, bias=False).double()
    model = nn.Sequential(layer, nn.Tanh())
    layer.weight.data = w.T.clone()
    coupled = lambda weight: (mix @ torch.tanh(x @ weight.T)).flatten()  # noqa: E731
    jacobian = torch.autograd.functional.jacobian(coupled, w.T.contiguous()).flatten(1)
    found = oracle.fisher(_Mixed(model, mix), x, torch.zeros(4, 2).double(), "gaussian")
    assert oracles.relative(found, jacobian.T @ jacobian / 4) <= 1e-13


def test_a_complex_number_counts_as_its_two_real_parts() -> None:
    """In turn, as ``view_as_real`` lays them."""
    layer, x = nn.Linear(3, 2, bias=False, dtype=torch.complex128), torch.randn(4, 3, dtype=torch.complex128)
    parts = torch.view_as_real(layer.weight.detach()).clone()
    outputs = lambda w: (x @ torch.view_as_complex(w).T).abs().flatten()  # noqa: E731
    jacobian = torch.autograd.functional.jacobian(outputs, parts).flatten(1)
    found = oracle.fisher(nn.Sequential(layer, _Modulus()), x, torch.zeros(4, 2).double(), "gaussian")
    assert oracles.relative(found, jacobian.T @ jacobian / 4) <= 1e-13


class _Modulus(nn.Module):
    """Complex numbers as their absolute values."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class _Mixed(nn.Module):
    """A model whose outputs are mixed over the batch."""

    def __init__(self, model: nn.Module, mix: Tensor) -> None:
        super().__init__()
        self.model, self.mix = model, mix

    def forward(self, x: Tensor) -> Tensor:
        return self.mix @ self.model(x)


@pytest.mark.parametrize("case", EVERY)
def test_what_may_be_left_out_has_no_gradient(case: Case) -> None:
    """And nothing else has none, but vectors that a norm or a softmax makes needless, whose gradient is rounding."""
    problem = case.build()
    columns, positions = oracle.columns(*problem[:4])[0], oracle.positions(problem.model)
    without = {name for name in positions if not columns[:, entries(positions, [name])].any()}
    assert case.left_out <= without
    assert all(positions[name].ndim <= 1 for name in without - case.left_out), without


@pytest.mark.parametrize("wrong", ["transposed", "shared", "one_parameter"])
def test_a_wrong_fisher_is_seen(wrong: str) -> None:
    """Controls of the comparison itself, as small as a part of one parameter."""
    case = next(case for case in SMALL if case.name == "mlp")
    problem = case.build()
    expected, positions = oracle.fisher(*problem[:4]), oracle.positions(problem.model)
    found, order = expected.clone(), torch.arange(len(expected))
    if wrong == "transposed":
        order[:20] = order[:20].view(5, 4).T.flatten()
        found = found[order][:, order]
    elif wrong == "shared":
        found = found * (1 + 1e-9)
    else:
        found[-1] *= 1 + 1e-9
    rows = {name: entries(positions, [name]) for name in positions}
    with pytest.raises(AssertionError):
        refuse_far(found, expected, rows, case.tolerance)
