"""Passes that use the parameters otherwise than the first one did: in another dtype, on other samples, in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import oracle
from zoo.case import Net

import curvbench as cb

Batch = tuple[Any, Tensor]


def cast(m: Any, x: Tensor) -> Tensor:
    """In float32 the cast gives the parameter itself, in float64 another tensor."""
    return m.last(x) * (1 + m.gain.float())


def placed(m: Any, x: Tensor) -> Tensor:
    """Positions that have as many rows as the larger batch has samples, or more than the smaller one."""
    steps = torch.linspace(0, 1, x.shape[1]).to(x)[:, None]
    return m.last(torch.tanh(m.first(x) + steps * m.place))


def ragged(m: Any, x: Tensor, mask: Tensor) -> Tensor:
    """Rows of tokens that the mask keeps."""
    outputs = x.new_zeros(*x.shape[:2], 3)
    outputs[mask] = m.last(torch.tanh(m.first(x[mask])))
    return outputs


def in_order(m: Any, x: Tensor) -> Tensor:
    """Samples in the order of their first entries, and back."""
    order = x[:, 0].argsort()
    return m.last(torch.tanh(m.first(x[order]))[order.argsort()])


def branched(m: Any, x: Tensor) -> Tensor:
    """Another layer for another batch."""
    return m.last(torch.tanh(m.first(x) if bool(x[0, 0] > 0) else m.other(x)))


def layers(function: Callable[..., Tensor], **parts: Tensor | nn.Module) -> Net:
    torch.manual_seed(0)
    return Net(function, first=nn.Linear(4, 5), last=nn.Linear(5, 3), **parts)


def batch(samples: int, *tokens: int) -> Batch:
    return torch.randn(samples, *tokens, 4).double(), torch.randint(3, (samples, *tokens))


def masked(*lengths: int) -> Batch:
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    x, y = batch(len(lengths), 5)
    return (x, mask), y.where(mask, -100)


def sorted_batch(samples: int) -> Batch:
    x, y = batch(samples)
    x[:, 0] = torch.arange(samples)
    return x, y


def at(sign: float) -> Batch:
    x, y = batch(6)
    x[0, 0] = sign
    return x, y


def fisher_of(instance: cb.Instance) -> Tensor:
    """The oracle's matrix in float64, in the order of the instance."""
    model = instance.model
    found = oracle.fisher(model, instance.inputs, instance.targets, "cross_entropy")
    order = instance.pack(oracle.positions(model)).long()
    return found[order][:, order].double()


@pytest.mark.parametrize("precision", ["mixed", "native"])
def test_a_cast_of_a_parameter(precision: str) -> None:
    torch.manual_seed(0)
    model = Net(cast, last=nn.Linear(4, 3), gain=torch.randn(3))
    instance = cb.Instance(model, torch.randn(6, 4), torch.randint(3, (6,)))
    expected = fisher_of(instance)
    found = cb.exact_fisher(instance, precision=precision).to_dense().double()
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


def test_some_of_the_samples() -> None:
    """As few as positions have rows, and fewer."""
    instance = cb.Instance(layers(placed, place=torch.randn(5)).double(), *batch(6, 4))
    for drawn in (instance.draw(4, 0), instance.draw(3, 0), instance.part(slice(1, 4))):
        again = cb.Instance(instance.model, drawn.inputs, drawn.targets)
        found, expected = cb.exact_fisher(drawn), cb.exact_fisher(again)
        assert torch.allclose(found.to_dense() * drawn.terms, expected.to_dense() * again.terms, rtol=1e-10)


TRAININGS: dict[str, tuple[Callable[[], Net], list[Callable[[], Batch]]]] = {
    "a last batch of other size": (
        lambda: layers(placed, place=torch.randn(5)),
        [lambda: batch(6, 4), lambda: batch(4, 4), lambda: batch(3, 4), lambda: batch(6, 4)],
    ),
    "as many tokens in all, and others": (
        lambda: layers(ragged),
        [
            lambda: masked(5, 5, 5, 5),
            lambda: masked(2, 4, 3, 3),
            lambda: masked(5, 1, 1, 5),
            lambda: masked(5, 5, 1, 1),
        ],
    ),
    "sorted in the first batch alone": (
        lambda: layers(in_order),
        [lambda: sorted_batch(8), lambda: batch(8), lambda: batch(8)],
    ),
    "another layer": (lambda: layers(branched, other=nn.Linear(4, 5)), [lambda: at(1.0), lambda: at(1.0)]),
}


@pytest.mark.parametrize("statistics", ["auto", "evaluation"])
@pytest.mark.parametrize("kind", TRAININGS)
def test_trainings_make_the_dense_step_of_each_batch(kind: str, statistics: Any) -> None:
    build, batches = TRAININGS[kind]
    model = build().double()
    optimizer = cb.NaturalGradient(model, cb.probe("full", damping=0.1), lr=0.1, statistics=statistics)
    for make in batches:
        x, y = make()
        dense = oracle.fisher(model, x, y, "cross_entropy")
        inputs = x if isinstance(x, tuple) else (x,)
        loss = F.cross_entropy(model(*inputs).flatten(0, -2), y.flatten(), ignore_index=-100)
        before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        gradient = torch.cat(
            [torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in model.parameters()]
        )
        optimizer.step()
        step = nn.utils.parameters_to_vector(model.parameters()).detach() - before
        expected = -0.1 * torch.linalg.solve(dense + 0.1 * torch.eye(len(dense)).double(), gradient)
        assert float((step - expected).norm()) <= 1e-9 * float(expected.norm())


def test_an_expert_that_the_first_batch_did_not_use_stays_outside() -> None:
    """And the others' statistics go on."""
    model = layers(branched, other=nn.Linear(4, 5)).double()
    optimizer = cb.NaturalGradient(model, cb.probe("kfac", damping=0.1), lr=0.1)
    for make in (lambda: at(1.0), lambda: at(1.0), lambda: at(-1.0)):
        x, y = make()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_losses_at_each_token_have_its_weights() -> None:
    torch.manual_seed(0)
    weight = torch.rand(3, 1).double()
    model, x, y = nn.Linear(4, 2).double(), torch.randn(3, 3, 4).double(), torch.rand(3, 3, 2).double()
    loss = nn.BCEWithLogitsLoss(weight=weight, pos_weight=torch.rand(3, 2).double())
    instance = cb.Instance(model, x, y, loss)
    outputs = model(x)
    rows = [torch.autograd.grad(o, (model.weight, model.bias), retain_graph=True) for o in outputs.flatten()]
    jacobian = torch.stack([instance.pack({"weight": weights, "bias": biases}) for weights, biases in rows])
    hessian = torch.autograd.functional.hessian(lambda f: loss(f.view_as(outputs), y), outputs.detach().flatten())
    expected = jacobian.T @ hessian @ jacobian
    assert torch.allclose(cb.exact_fisher(instance).to_dense(), expected, rtol=1e-10, atol=1e-14)


def test_images_have_their_classes_in_dimension_1_whatever_their_size() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Conv2d(2, 3, 3, padding=1).double(), torch.randn(2, 2, 3, 3).double(), torch.randint(3, (2, 3, 3))
    found = cb.exact_fisher(cb.Instance(model, x, y))
    assert torch.equal(found.to_dense(), cb.exact_fisher(cb.Instance(model, x, y, nn.CrossEntropyLoss())).to_dense())


def test_targets_that_are_no_tensor_are_said() -> None:
    with pytest.raises(ValueError, match="targets must be a tensor"):
        cb.Instance(nn.Linear(4, 3), torch.randn(2, 4), [0, 1])  # type: ignore[arg-type]
