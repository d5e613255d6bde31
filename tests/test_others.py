"""Parameters that a method's public code leaves to AdamW: torch's AdamW in a plain loop is the oracle."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import curvbench as cb
from curvbench.optim import NaturalGradient
from curvbench.probes.identity import IdentityProbe
from curvbench.spec import StepRule

Batch = tuple[Tensor, Tensor]
OTHERS = ("table.weight", "norm.weight", "norm.bias")


@dataclass(frozen=True)
class Matrices(IdentityProbe):
    """Plain gradients on weights; the rest is left to AdamW."""

    rule = StepRule(others="adamw")


class Words(nn.Module):
    """Tokens (N, T) to classes (N, C): a table, a norm and two weights, one of them with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(7, 4), nn.LayerNorm(4)
        self.hidden, self.last = nn.Linear(4, 5), nn.Linear(5, 3, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(torch.tanh(self.hidden(self.norm(self.table(tokens).mean(1)))))


def words(dtype: torch.dtype = torch.float64) -> Words:
    torch.manual_seed(0)
    return Words().to(dtype)


def batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randint(7, (6, 3), generator=generator), torch.randint(3, (6,), generator=generator))
        for _ in range(count)
    ]


def train(model: nn.Module, optimizers: list[Any], schedules: list[Any], data: list[Batch]) -> None:
    for x, y in data:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for part in (*optimizers, *schedules):
            part.step()


def falling(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)


def distance(first: nn.Module, second: nn.Module, names: Any = None) -> float:
    a, b = dict(first.named_parameters()), dict(second.named_parameters())
    return max(float((a[name] - b[name]).detach().abs().max()) for name in names or a)


def judged(model: nn.Module, decay: float, data: list[Batch], rate: float = 0.01) -> nn.Module:
    """The model after SGD on weights and AdamW on the rest, both of torch."""
    judge = copy.deepcopy(model)
    weights = [p for name, p in judge.named_parameters() if name not in OTHERS]
    rest = [p for name, p in judge.named_parameters() if name in OTHERS]
    sgd = torch.optim.SGD(weights, 0.1, 0.9)
    adamw = torch.optim.AdamW(rest, rate, weight_decay=decay)
    optimizers = [sgd, adamw]
    train(judge, optimizers, [falling(o) for o in optimizers], data)
    return judge


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_others_take_torch_s_adamw_at_a_rate_of_their_own_that_falls_with_lr(decay: float) -> None:
    model, data = words(), batches(7)
    judge = judged(model, decay, data)
    weights = [p for name, p in model.named_parameters() if name not in OTHERS]
    groups = [
        {"params": weights, "weight_decay": 0.0},
        {"params": [p for name, p in model.named_parameters() if name in OTHERS]},
    ]
    optimizer = NaturalGradient(model, Matrices(), 0.1, 0.9, decay, params=groups, others_lr=0.01)
    train(model, [optimizer], [falling(optimizer)], data)
    assert distance(model, judge) <= 1e-12
    assert distance(model, judged(words(), decay, data, rate=0.011), OTHERS) > 1e-4  # another rate is told apart


def test_a_rate_for_others_gives_them_to_adamw_under_any_method() -> None:
    data = batches(4)
    model, judge = words(), judged(words(), 0.0, data)
    optimizer = NaturalGradient(model, cb.probe("identity"), 0.1, 0.9, parameters="weights", others_lr=0.01)
    train(model, [optimizer], [falling(optimizer)], data)
    assert distance(model, judge) <= 1e-12
    plain = words()
    optimizer = NaturalGradient(plain, cb.probe("identity"), 0.1, 0.9, parameters="weights")
    train(plain, [optimizer], [falling(optimizer)], data)
    assert distance(plain, judge, OTHERS) > 1e-3


def test_without_a_rate_of_their_own_others_take_lr() -> None:
    ends = []
    for options in ({}, {"others_lr": 0.1}):
        ends.append(words())
        train(ends[-1], [NaturalGradient(ends[-1], Matrices(), 0.1, **options)], [], batches(3))
    assert distance(*ends) == 0
    by_method = words()
    train(by_method, [NaturalGradient(by_method, cb.probe("identity"), 0.1)], [], batches(3))
    assert distance(by_method, ends[0], OTHERS) > 1e-3


def test_a_copy_and_a_stored_state_continue_adamw_to_the_same_bits() -> None:
    model, data = words(torch.bfloat16), batches(6)
    optimizer = NaturalGradient(model, Matrices(), 0.1, 0.9, others_lr=0.01)
    train(model, [optimizer], [], data[:3])
    copied, copy_optimizer = copy.deepcopy((model, optimizer))
    loaded = words(torch.bfloat16)
    loaded.load_state_dict(model.state_dict())
    continued = NaturalGradient(loaded, Matrices(), 0.1, 0.9, others_lr=0.01)
    continued.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for trained, by in ((model, optimizer), (copied, copy_optimizer), (loaded, continued)):
        train(trained, [by], [], data[3:])
    assert distance(model, copied) == 0 and distance(model, loaded) == 0
    assert optimizer.state[model.table.weight]["second"].dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"others_lr": -1.0}, "others_lr must be finite and not negative, or None, got -1.0"),
        ({"others_lr": float("nan")}, "others_lr must be finite"),
        ({"others_lr": 0.1, "lr": 0.0}, "others_lr=0.1 changes with lr, which is 0: give lr above zero"),
    ],
    ids=str,
)
def test_rates_that_mean_nothing_are_refused(arguments: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        NaturalGradient(words(), Matrices(), **arguments)


def test_a_model_without_weights_is_refused_in_one_line() -> None:
    model = nn.Sequential(nn.Embedding(7, 3), nn.LayerNorm(3)).double()
    optimizer = NaturalGradient(model, Matrices(), 0.1)
    with pytest.raises(ValueError, match=r"no trainable parameter is left to measure: .*no weight of a linear layer"):
        F.cross_entropy(model(torch.arange(6)), torch.arange(6) % 3).backward()
        optimizer.step()
