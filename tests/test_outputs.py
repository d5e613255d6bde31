"""Outputs as they come: which tensor of a model's return they are, and how they are arranged."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvbench as cb
from curvbench.instance.likelihood import likelihood
from curvbench.instance.outputs import arranged, chosen
from curvbench.meters.cost import Stepper, flop_rows

LOGITS = torch.arange(12.0).reshape(4, 3)


@pytest.mark.parametrize(
    ("returned", "choose"),
    [
        (LOGITS, None),
        ((LOGITS,), None),
        ([LOGITS], None),
        (SimpleNamespace(loss=None, logits=LOGITS), None),
        (OrderedDict(loss=None, logits=LOGITS), None),
        ((LOGITS, None), lambda returned: returned[0]),
        ({"scores": LOGITS}, lambda returned: returned["scores"]),
    ],
)
def test_the_outputs_are_found_in_what_a_model_returns(returned: Any, choose: Any) -> None:
    assert chosen(returned, choose) is LOGITS


def test_several_tensors_stay_several() -> None:
    assert chosen([LOGITS, LOGITS + 1])[1] is not LOGITS
    assert len(chosen({"a": LOGITS, "b": LOGITS}, lambda r: (r["a"], r["b"]))) == 2


@pytest.mark.parametrize(
    ("returned", "choose", "words"),
    [
        ({"logits": None, "end": LOGITS}, None, "the model returns dict with the keys 'logits', 'end'"),
        ({"start": LOGITS, "end": LOGITS}, None, "the model returns dict with the keys 'start', 'end'"),
        ((LOGITS, None), None, "the model returns tuple of Tensor, NoneType"),
        ((), None, "the model returns tuple of nothing"),
        (None, None, "the model returns NoneType"),
        ((LOGITS, None), lambda returned: returned, "outputs= returns tuple of Tensor, NoneType"),
    ],
)
def test_other_returns_are_refused_with_a_remedy(returned: Any, choose: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        chosen(returned, choose)
    assert "give outputs=" in str(caught.value) and "\n" not in str(caught.value)


def shapes(loss: Any, outputs: tuple[int, ...], targets: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    values, wanted = arranged(torch.zeros(outputs), targets, likelihood(loss))
    return tuple(values.shape), tuple(wanted.shape)


def label(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64)


def function(outputs: Tensor, target: Tensor) -> Tensor:
    return outputs.sum()


CROSS = nn.CrossEntropyLoss()


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "expected"),
    [
        ("cross_entropy", (4, 3), label(4), ((4, 3), (4,))),
        ("cross_entropy", (4, 2, 3), label(4, 2), ((4, 2, 3), (4, 2))),
        ("cross_entropy", (4, 3, 2), label(4, 2), ((4, 2, 3), (4, 2))),
        ("cross_entropy", (4, 3, 5, 6), label(4, 5, 6), ((4, 30, 3), (4, 30))),
        (CROSS, (4, 5, 6, 3), label(4, 5, 6), ((4, 30, 3), (4, 30))),
        (CROSS, (4, 3, 5, 6), torch.zeros(4, 3, 5, 6), ((4, 30, 3), (4, 30, 3))),
        ("gaussian", (4,), torch.zeros(4), ((4, 1), (4, 1))),
        ("gaussian", (4, 2, 3), torch.zeros(4, 2, 3), ((4, 2, 3), (4, 2, 3))),
        (nn.MSELoss(), (4, 2, 5, 6), torch.zeros(4, 2, 5, 6), ((4, 10, 6), (4, 10, 6))),
        (function, (4, 3), torch.zeros(4), ((4, 3), (4, 1))),
        (function, (4, 3), torch.zeros(4, 2, 5), ((4, 3), (4, 10))),
        (function, (4, 2, 3), torch.zeros(4, 2), ((4, 2, 3), (4, 2, 1))),
        (function, (4, 2, 3), label(4, 2), ((4, 2, 3), (4, 2))),
    ],
)
def test_shapes(loss: Any, outputs: tuple[int, ...], targets: Tensor, expected: Any) -> None:
    assert shapes(loss, outputs, targets) == expected


@pytest.mark.parametrize(("loss", "classes"), [("cross_entropy", 2), (CROSS, 1)])
def test_where_both_dimensions_fit_a_name_means_the_last_and_torch_means_the_second(loss: Any, classes: int) -> None:
    outputs = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0))
    values, _ = arranged(outputs, label(4, 3), likelihood(loss))
    assert torch.equal(values, outputs.movedim(classes, -1))


def test_outputs_in_place_are_not_touched() -> None:
    assert arranged(LOGITS, label(4), likelihood("cross_entropy"))[0] is LOGITS


@pytest.mark.parametrize("shape", [(4, 2), (4, 1), (4,)])
def test_a_variance_expands_to_its_mean(shape: tuple[int, ...]) -> None:
    mean, variance = torch.zeros(4, 2), torch.rand(shape)
    values, _ = arranged((mean, variance), torch.zeros(4, 2), likelihood(nn.GaussianNLLLoss()))
    full = variance.reshape(4, -1).expand(4, 2)
    assert torch.equal(values, torch.cat([mean, full], -1))


def test_a_variance_of_another_shape_and_too_many_tensors_are_refused() -> None:
    with pytest.raises(ValueError, match="a variance must expand to the mean"):
        arranged((torch.zeros(4, 2), torch.zeros(3)), torch.zeros(4, 2), likelihood(nn.GaussianNLLLoss()))
    with pytest.raises(ValueError, match=r"cross_entropy reads \(outputs\), the model returns 2 tensors: give"):
        arranged((LOGITS, LOGITS), label(4), likelihood("cross_entropy"))


def test_a_step_on_rearranged_outputs_is_counted() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(4, 2, 5, 5), torch.randint(3, (4, 5, 5))
    instance = cb.Instance(nn.Conv2d(2, 3, 3, padding=1), x, y, nn.CrossEntropyLoss())
    assert instance.terms == 100 and instance.classes == 3 and not instance.returns_outputs
    assert all(row.value >= 0 for row in flop_rows(Stepper(cb.probe("kfac"), instance)))


class Returns(nn.Module):
    """A network that returns a mapping of its outputs."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key, self.net = key, nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"loss": None, self.key: self.net(x)}


@pytest.mark.parametrize(("key", "choose"), [("logits", None), ("scores", lambda returned: returned["scores"])])
def test_an_instance_of_a_model_that_returns_a_mapping(key: str, choose: Any) -> None:
    torch.manual_seed(0)
    model, x, y = Returns(key), torch.randn(4, 5).double(), torch.tensor([0, 1, 2, 0])
    found = cb.exact_fisher(cb.Instance(model, x, y, outputs=choose)).to_dense()
    assert torch.equal(found, cb.exact_fisher(cb.Instance(model.net, x, y)).to_dense())
    with pytest.raises(ValueError, match="wrap the model"):
        cb.NaturalGradient(Returns("logits"), cb.probe("kfac", damping=0.1)).forward(x, y)
