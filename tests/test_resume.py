"""Trainings that are stored, copied or pickled between any two steps, and go on to the same bits."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import curvbench as cb
from curvbench import registry
from curvbench.optim import NaturalGradient
from curvbench.spec import Decay, Probe

STEPS = 6
PROBES = [
    *(cb.probe(name) for name in sorted(registry.probes())),
    cb.probe("kfac", fisher_type="mc"),
    cb.probe("ekfac", basis_every=2, ema=0.5),
    cb.probe("lngd", layer_rate="corrected"),
    cb.probe("fngd", stage="shared", batches=2),
]


@dataclass(frozen=True)
class Plan:
    """How a training is set up, whether a batch comes in parts, when it stops and how it is taken up again."""

    probe: Probe
    stat_every: int
    refresh_every: int
    momentum: float
    kl_clip: float | None
    ema: float
    parts: bool
    decays: bool
    at: int
    way: str

    def optimizer(self, model: nn.Module) -> NaturalGradient:
        return NaturalGradient(
            model,
            self.probe,
            1e-3,
            self.momentum,
            0.01,
            stat_every=self.stat_every,
            refresh_every=self.refresh_every,
            kl_clip=self.kl_clip,
            ema=self.ema if self.probe.supports_ema else 0.0,
            decay=(Decay("damping", 0.9, 1e-5),) if self.decays and "damping" in self.probe.hyperparameters else (),
        )

    def train(self, optimizer: NaturalGradient, steps: range) -> None:
        """Steps with batches of their own."""
        for k in steps:
            torch.manual_seed(k)
            x, y = torch.randn(8, 5).double(), torch.randint(3, (8,))
            optimizer.zero_grad()
            for rows in (slice(3), slice(3, 8)) if self.parts and self.probe.combines_by else (slice(8),):
                loss = F.cross_entropy(optimizer.forward(x[rows], y[rows]), y[rows], reduction="sum") / len(y)
                loss.backward()
            optimizer.step()


def started() -> nn.Module:
    torch.manual_seed(99)
    return mlp(5, 6, 4, 3).double()


def through_a_file(content: Any) -> Any:
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def taken_up(plan: Plan, model: nn.Module, optimizer: NaturalGradient) -> tuple[nn.Module, NaturalGradient]:
    """Another pair that goes on from where this one is."""
    if plan.way == "deepcopy":
        return copy.deepcopy((model, optimizer))
    if plan.way == "pickle":
        again = pickle.loads(pickle.dumps(optimizer))
        return again.model, again
    weights, state = through_a_file((model.state_dict(), optimizer.state_dict()))
    other = mlp(5, 6, 4, 3).double()
    if plan.way == "weights first":
        other.load_state_dict(weights)
    again = plan.optimizer(other)
    again.load_state_dict(state)
    other.load_state_dict(weights)
    return other, again


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach() for p in model.parameters()]


PLANS = st.builds(
    Plan,
    probe=st.sampled_from(PROBES),
    stat_every=st.integers(1, 4),
    refresh_every=st.integers(1, 4),
    momentum=st.sampled_from([0.0, 0.9]),
    kl_clip=st.sampled_from([None, 1e-3]),
    ema=st.sampled_from([0.0, 0.7]),
    parts=st.booleans(),
    decays=st.booleans(),
    at=st.integers(0, STEPS),
    way=st.sampled_from(["weights first", "weights last", "deepcopy", "pickle"]),
)


@settings(max_examples=50, deadline=None)
@given(PLANS)
def test_a_training_goes_on_from_any_step_to_the_same_bits(plan: Plan) -> None:
    model = started()
    optimizer = plan.optimizer(model)
    plan.train(optimizer, range(plan.at))
    other, again = taken_up(plan, model, optimizer)
    plan.train(optimizer, range(plan.at, STEPS))
    plan.train(again, range(plan.at, STEPS))
    assert all(map(torch.equal, values(model), values(other)))
    assert not all(map(torch.equal, values(started()), values(other)))


def test_a_state_in_memory_stays_what_it_was() -> None:
    """The momentum of a state that was asked for does not move with later steps."""
    plan = Plan(cb.probe("kfac"), 2, 2, 0.9, None, 0.0, False, False, 3, "")
    model = started()
    optimizer = plan.optimizer(model)
    plan.train(optimizer, range(3))
    weights, state = copy.deepcopy(model.state_dict()), optimizer.state_dict()
    plan.train(optimizer, range(3, STEPS))
    other = started()
    again = plan.optimizer(other)
    other.load_state_dict(weights)
    again.load_state_dict(state)
    plan.train(again, range(3, STEPS))
    assert all(map(torch.equal, values(model), values(other)))


class Drawing(nn.Module):
    """Draws whether to drop its middle layer in either mode, and heeds it in one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        drawn = torch.rand(()) < 0.5
        return self.last(hidden if drawn and self.training else hidden + torch.tanh(self.middle(hidden)))


def test_verifying_the_model_again_draws_nothing() -> None:
    plan = Plan(cb.probe("kfac", damping=0.1), 3, 3, 0.0, None, 0.0, False, False, 2, "")
    torch.manual_seed(0)
    model = Drawing().double()
    optimizer = plan.optimizer(model)
    plan.train(optimizer, range(2))
    other, again = copy.deepcopy((model, optimizer))
    for pair in ((model, optimizer), (other, again)):
        torch.manual_seed(7)
        for _ in range(8):
            x, y = torch.ones(4, 5).double(), torch.arange(4) % 3
            pair[1].zero_grad()
            F.cross_entropy(pair[1].forward(x, y), y).backward()
            pair[1].step()
    assert all(map(torch.equal, values(model), values(other)))


def test_a_copy_alone_has_a_model_of_its_own() -> None:
    plan = Plan(cb.probe("ekfac"), 1, 1, 0.9, None, 0.0, False, False, 2, "")
    model = started()
    optimizer = plan.optimizer(model)
    plan.train(optimizer, range(2))
    before = [value.clone() for value in values(model)]
    again = copy.deepcopy(optimizer)
    plan.train(again, range(2, 4))
    assert all(map(torch.equal, values(model), before))
    assert not all(map(torch.equal, values(again.model), before))


def test_a_copy_begins_between_two_steps() -> None:
    """A batch that is under way is left behind, and its gradients with it."""
    plan = Plan(cb.probe("kfac"), 1, 1, 0.0, None, 0.0, False, False, 2, "")
    model = started()
    optimizer = plan.optimizer(model)
    plan.train(optimizer, range(2))
    x, y = torch.randn(8, 5).double(), torch.randint(3, (8,))
    F.cross_entropy(optimizer.forward(x, y), y).backward()
    other, again = copy.deepcopy((model, optimizer))
    assert all(p.grad is None for p in other.parameters())
    optimizer.zero_grad()
    plan.train(optimizer, range(2, 4))
    plan.train(again, range(2, 4))
    assert all(map(torch.equal, values(model), values(other)))


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    plan = Plan(cb.probe("kfac"), 2, 2, 0.9, None, 0.0, False, False, 3, "")
    model = started()
    optimizer, other = plan.optimizer(model), plan.optimizer(started())
    plan.train(optimizer, range(3))
    state = optimizer.state_dict()
    state["param_groups"][0]["params"] = [0]
    with pytest.raises(ValueError, match="parameter group"):
        other.load_state_dict(state)
    assert other._curvature.steps == 0 and other._curvature.state is None


def test_a_state_of_other_layers_is_refused() -> None:
    plan = Plan(cb.probe("kfac"), 4, 4, 0.0, None, 0.0, False, False, 3, "")
    optimizer = plan.optimizer(started())
    plan.train(optimizer, range(3))
    frozen = started()
    frozen[2].requires_grad_(False)
    again = plan.optimizer(frozen)
    again.load_state_dict(optimizer.state_dict())
    with pytest.raises(
        ValueError, match=r"the state is that of layers '0', '2', '4'; this batch goes through '0', '4'"
    ):
        plan.train(again, range(3, 4))


def test_a_step_that_has_seen_no_batch_says_so() -> None:
    plan = Plan(cb.probe("kfac"), 4, 4, 0.0, None, 0.0, False, False, 3, "")
    optimizer = plan.optimizer(started())
    plan.train(optimizer, range(3))
    again = plan.optimizer(started())
    again.load_state_dict(optimizer.state_dict())
    again.close()
    F.cross_entropy(again.model(torch.randn(8, 5).double()), torch.randint(3, (8,))).backward()
    with pytest.raises(ValueError, match=r"^no batch has been seen yet, .*optimizer\.forward\(inputs, targets\)$"):
        again.step()
