"""L-BFGS against dense BFGS and its compact form, and Hessian products against autograd."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from cases import CASES, Case, instance_of, truth
from streams import relative
from torch import Tensor, nn
from torch.func import functional_call

import curvbench as cb
from curvbench.probes.lbfgs import two_loop


def hessian(case: Case) -> Tensor:
    """Of the mean loss in the covered parameters, dense, by autograd's own double differentiation."""
    model, inputs, targets = case.build()
    names = [n for n, _ in model.named_parameters() if n.rpartition(".")[0] in oracles.covered_layers(model)]
    sizes = [model.get_parameter(n).numel() for n in names]
    order = oracles.pack(
        model,
        {
            n: part.reshape(model.get_parameter(n).shape)
            for n, part in zip(names, torch.arange(sum(sizes)).double().split(sizes), strict=True)
        },
    ).long()

    class Bound(nn.Module):
        def __init__(self, vector: Tensor) -> None:
            super().__init__()
            self.parts = dict(zip(names, vector.split(sizes), strict=True))

        def forward(self, x: Tensor) -> Tensor:
            shaped = {n: p.reshape(model.get_parameter(n).shape) for n, p in self.parts.items()}
            return functional_call(model, shaped, (x,))

    def loss(vector: Tensor) -> Tensor:
        return oracles.mean_loss(Bound(vector), inputs, targets, case.loss)

    point = torch.cat([model.get_parameter(n).detach().flatten() for n in names])
    matrix = torch.autograd.functional.hessian(loss, point)
    return matrix[order][:, order]


def dense_bfgs(steps: Tensor, products: Tensor) -> Tensor:
    """B by rank-two updates of theta I, all pairs, oldest first."""
    theta = (products[-1] @ products[-1]) / (steps[-1] @ products[-1])
    B = theta * torch.eye(steps.shape[1]).double()
    for s, y in zip(steps, products, strict=True):
        B = B - torch.outer(B @ s, B @ s) / (s @ B @ s) + torch.outer(y, y) / (s @ y)
    return B


def compact_bfgs(steps: Tensor, products: Tensor) -> Tensor:
    """B = theta I - W M^-1 W^T (Byrd, Nocedal, Schnabel 1994)."""
    theta = (products[-1] @ products[-1]) / (steps[-1] @ products[-1])
    crossed = steps @ products.T
    lower, diagonal = crossed.tril(-1), torch.diag(crossed.diagonal())
    W = torch.cat([theta * steps, products]).T
    M = torch.cat([torch.cat([theta * steps @ steps.T, lower], 1), torch.cat([lower.T, -diagonal], 1)])
    return theta * torch.eye(steps.shape[1]).double() - W @ torch.linalg.solve(M, W.T)


def fitted(name: str, **hyperparameters: Any) -> tuple[Any, Any]:
    probe = cb.probe("lbfgs", **hyperparameters)
    return probe, probe.fit(instance_of(name))


def test_hessian_products_are_those_of_autograd(case: Case, instance: cb.Instance) -> None:
    v = torch.randn(instance.size).double()
    expected = hessian(case) @ v
    assert (instance.hessian_product(v) - expected).norm() <= 1e-10 * expected.norm() + 1e-300


@pytest.mark.parametrize("name", ["mlp_gaussian", "padded_cnn", "tokens", "linear_tokens"])
@pytest.mark.parametrize("memory", [2, 10])
def test_operator_is_bfgs_in_every_form(name: str, memory: int) -> None:
    probe, state = fitted(name, memory=memory)
    assert len(state.steps) >= 2
    found = probe.operator(state).to_dense()
    assert relative(found, dense_bfgs(state.steps, state.products)) < 1e-8
    assert relative(found, compact_bfgs(state.steps, state.products)) < 1e-8
    assert float(torch.linalg.eigvalsh(found)[0]) > 0


@pytest.mark.parametrize("name", ["mlp_gaussian", "padded_cnn", "tokens", "linear_tokens"])
def test_pairs_are_products_with_the_hessian_and_the_newest_is_a_secant(name: str) -> None:
    probe, state = fitted(name)
    matrix = hessian(CASES[name])
    assert relative(state.products, state.steps @ matrix) < 1e-10
    assert bool(((state.steps * state.products).sum(1) > 1e-10 * state.products.norm(dim=1)).all())
    assert relative(probe.operator(state).matvec(state.steps[-1]), state.products[-1]) < 1e-8
    assert relative(probe.precondition(state, state.products[-1]), state.steps[-1]) < 1e-8


@pytest.mark.parametrize("name", ["mlp_gaussian", "padded_cnn", "tokens", "linear_tokens"])
def test_two_loops_are_the_inverse_of_the_operator(name: str) -> None:
    """BH = I."""
    probe, state = fitted(name)
    inverse = torch.stack([probe.precondition(state, e) for e in torch.eye(instance_of(name).size).double()], 1)
    eye = torch.eye(len(inverse)).double()
    assert relative(probe.operator(state).to_dense() @ inverse, eye) < 1e-8
    assert relative(inverse, torch.linalg.inv(dense_bfgs(state.steps, state.products))) < 1e-8


def test_it_ends_after_as_many_steps_as_parameters_on_a_quadratic() -> None:
    """A linear network with Gaussian loss is its own quadratic model: the step becomes Newton's."""
    torch.manual_seed(1)
    model, x, y = nn.Sequential(nn.Linear(3, 2)).double(), torch.randn(9, 3).double(), torch.randn(9, 2).double()
    instance = cb.Instance(model, x, y, loss="gaussian")
    fisher = cb.exact_fisher(instance).to_dense()
    probe = cb.probe("lbfgs", memory=8, updates=8)
    state, early = probe.fit(instance), cb.probe("lbfgs", memory=8, updates=3).fit(instance)
    newton = torch.linalg.solve(fisher, instance.gradient())
    assert float(state.slope.norm() / state.start) < 1e-8 < 1e-3 < float(early.slope.norm() / early.start)
    assert relative(probe.precondition(state, instance.gradient()), newton) < 1e-8
    assert relative(probe.precondition(early, instance.gradient()), newton) > 1e-3


def test_after_convergence_updates_change_nothing() -> None:
    torch.manual_seed(1)
    model, x, y = nn.Sequential(nn.Linear(2, 1)).double(), torch.randn(9, 2).double(), torch.randn(9, 1).double()
    instance = cb.Instance(model, x, y, loss="gaussian")
    few, many = (cb.fit(cb.probe("lbfgs", updates=k, memory=40), instance).to_dense() for k in (3, 40))
    assert relative(many, few) < 1e-10


def test_negative_curvature_is_refused() -> None:
    """The Hessian of this case is indefinite, and so are some of the steps along it."""
    assert float(torch.linalg.eigvalsh(hessian(CASES["mlp_tanh"]))[0]) < -1e-3
    probe, state = fitted("mlp_tanh", updates=10)
    assert 1 <= len(state.steps) < 10
    assert float(torch.linalg.eigvalsh(probe.operator(state).to_dense())[0]) > 0


def test_without_pairs_it_is_the_identity() -> None:
    probe, instance = cb.probe("lbfgs"), instance_of("mlp_tanh")
    state, v = probe.init(instance), truth("mlp_tanh").gradient
    assert torch.equal(probe.operator(state).to_dense(), torch.eye(instance.size).double())
    assert torch.equal(two_loop(state.steps, state.products, v), v)


class Attention(nn.Module):
    """One head of attention over tokens, by torch's fused function."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        return self.last(nn.functional.scaled_dot_product_attention(h, h, h))


def test_attention_can_be_differentiated_twice() -> None:
    case = Case("attention", Attention, lambda: torch.randn(2, 3, 4), lambda: torch.randint(3, (2, 3)))
    instance = cb.Instance(*case.build())
    v = torch.randn(instance.size).double()
    probe = cb.probe("lbfgs", updates=2)
    assert probe.unsupported(instance) is None
    (model, inputs, targets), step = case.build(), 1e-5

    def gradient(sign: float) -> Tensor:
        moved = cb.Instance(model, inputs, targets)
        moved.parameters = {n: p + sign * step * moved.unpack(v)[n] for n, p in moved.parameters.items()}
        return moved.gradient()

    assert relative(instance.hessian_product(v), (gradient(1.0) - gradient(-1.0)) / (2 * step)) < 1e-6


class OnlyOnce(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return 2 * context.saved_tensors[0] * gradient


class Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return OnlyOnce.apply(x)


def test_what_cannot_be_differentiated_twice_is_unsupported() -> None:
    model = nn.Sequential(nn.Linear(3, 4), Squares(), nn.Linear(4, 2)).double()
    instance = cb.Instance(model, torch.randn(5, 3).double(), torch.arange(5) % 2)
    reason = cb.probe("lbfgs").unsupported(instance)
    assert reason is not None and "twice" in reason and "\n" not in reason
