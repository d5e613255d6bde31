"""Snapshots: the same seed gives the same bits, training is the recipe's, nothing else is touched."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from curvbench.problems.mlp import MLP
from curvbench.problems.resnet import ResNet
from curvbench.spec import AdamRecipe, Dataset, Diverged, Problem, Recipe
from curvbench.training import batch, evaluate, snapshot
from curvbench.training.loop import Course, train


@dataclass(frozen=True)
class Regression(Problem):
    """Seven samples, three inputs, two outputs."""

    loss: ClassVar[str] = "gaussian"
    recipe: ClassVar[Recipe] = Recipe(learning_rate=0.1, momentum=0.5, weight_decay=0.01, batch=7)

    samples: int = 5
    epochs: int = 3
    scale: float = 1.0

    def model(self) -> nn.Module:
        return nn.Linear(3, 2, bias=False)

    def data(self, root: Path | None) -> Dataset:
        draw = torch.Generator().manual_seed(5)
        inputs, targets = torch.randn(7, 3, generator=draw) * self.scale, torch.randn(7, 2, generator=draw)
        return Dataset(inputs, targets, inputs, targets)


@dataclass(frozen=True)
class Convolution(Problem):
    """Conv, BatchNorm that has ``seen`` batches, and dropout, on digits; ``asleep`` comes in evaluation mode."""

    recipe: ClassVar[Recipe] = Recipe(batch=256)

    samples: int = 8
    epochs: int = 0
    seen: int = 0
    asleep: bool = False

    def model(self) -> nn.Module:
        norm = nn.BatchNorm2d(4)
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.fill_(self.seen)
        layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout(), norm, nn.Flatten(), nn.Linear(4 * 36, 10))
        nn.init.constant_(layers.get_parameter("0.bias"), 3.0)
        return layers.train(not self.asleep)

    def data(self, root: Path | None) -> Dataset:
        return MLP().data(root)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: nn.Module, second: nn.Module) -> bool:
    one, two = state(first), state(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def accuracy(model: nn.Module, data: Dataset) -> float:
    share = evaluate(model, data.test_inputs, data.test_targets, "cross_entropy")[1]
    assert share is not None
    return share


PROBLEMS = [MLP(epochs=2), MLP(), ResNet(depth=8), ResNet(depth=8, epochs=1), Convolution(epochs=1)]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.label)
def test_same_seed_same_bits_other_seed_other_weights(problem: Problem) -> None:
    first = snapshot(problem, 3, None)
    torch.manual_seed(99)  # what the caller drew before must not matter
    assert same(first, snapshot(problem, 3, None))
    assert not same(first, snapshot(problem, 4, None))


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.label)
def test_generator_of_the_caller_is_left_alone(problem: Problem) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    snapshot(problem, 0, None)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.label)
def test_snapshot_is_ready_to_be_measured(problem: Problem, dtype: torch.dtype) -> None:
    model = snapshot(problem, 0, None, "cpu", dtype)
    assert not any(module.training for module in model.modules())
    assert all(parameter.dtype == dtype and parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_float64_snapshot_is_the_float32_one() -> None:
    single, double = (snapshot(MLP(epochs=1), 0, None, dtype=dtype) for dtype in (torch.float32, torch.float64))
    assert same(single.double(), double)


def test_training_is_sgd_by_the_recipe() -> None:
    problem = Regression()
    data = problem.data(None)
    x, y = data.train_inputs.double(), data.train_targets.double()
    weight = snapshot(replace(problem, epochs=0), 0, None, dtype=torch.float64).get_parameter("weight").detach()
    velocity = torch.zeros_like(weight)
    for step in range(3):  # one batch is the whole set
        gradient = (x @ weight.T - y).T @ x / 7 + 0.01 * weight
        velocity = 0.5 * velocity + gradient
        weight = weight - 0.1 * (1 + math.cos(math.pi * step / 3)) / 2 * velocity
    trained = snapshot(problem, 0, None, dtype=torch.float64).get_parameter("weight").detach()
    torch.testing.assert_close(trained, weight, rtol=1e-5, atol=1e-6)


@dataclass(frozen=True)
class Adaptive(Regression):
    """The same regression by AdamW."""

    recipe: ClassVar[Recipe] = AdamRecipe(learning_rate=0.05, momentum=0.8, weight_decay=0.1, batch=7, second=0.9)


def test_training_is_adam_by_its_recipe() -> None:
    data = Adaptive().data(None)
    x, y = data.train_inputs.double(), data.train_targets.double()
    weight = snapshot(Adaptive(epochs=0), 0, None, dtype=torch.float64).get_parameter("weight").detach()
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(3):
        gradient, rate = (x @ weight.T - y).T @ x / 7, 0.05 * (1 + math.cos(math.pi * step / 3)) / 2
        first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
        root = (second / (1 - 0.9 ** (step + 1))).sqrt() + 1e-8
        weight = (1 - rate * 0.1) * weight - rate * first / (1 - 0.8 ** (step + 1)) / root
    trained = snapshot(Adaptive(), 0, None, dtype=torch.float64).get_parameter("weight").detach()
    torch.testing.assert_close(trained, weight, rtol=1e-5, atol=1e-6)


def test_progress_tells_epoch_and_loss() -> None:
    problem = Regression()
    data = problem.data(None)
    start = snapshot(replace(problem, epochs=0), 0, None)
    first = ((start(data.train_inputs) - data.train_targets) ** 2).sum(1).mean().item() / 2
    events: list[tuple[int, int, float]] = []
    snapshot(problem, 0, None, progress=lambda *event: events.append(event))
    assert [(epoch, epochs) for epoch, epochs, _ in events] == [(1, 3), (2, 3), (3, 3)]
    assert events[0][2] == pytest.approx(first, rel=1e-5)
    assert events[2][2] < events[1][2] < events[0][2]


def test_resnet_learns_digits() -> None:
    problem = ResNet(depth=8, epochs=3)
    data = problem.data(None)
    before, after = (snapshot(p, 0, None) for p in (replace(problem, epochs=0), problem))
    assert accuracy(before, data) < 0.5
    assert accuracy(after, data) > 0.9


def test_divergence_is_named() -> None:
    with pytest.raises(
        Diverged, match=r"Regression\[epochs=50,scale=1e\+20\]: the loss is (nan|inf) in epoch \d+ of 50"
    ):
        snapshot(Regression(epochs=50, scale=1e20), 0, None)


def test_fresh_batch_norm_gets_the_statistics_of_the_data() -> None:
    problem = Convolution()  # six batches of equal weight but for rounding: all of the data
    model = snapshot(problem, 0, None, dtype=torch.float64)
    inputs = problem.data(None).train_inputs.double()
    activations = model.get_submodule("0")(inputs).detach()
    norm = model.get_submodule("2")
    torch.testing.assert_close(norm.get_buffer("running_mean"), activations.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(norm.get_buffer("running_var"), activations.var((0, 2, 3)), rtol=2e-2, atol=1e-3)
    assert norm.momentum == 0.1


def test_batch_norm_with_statistics_keeps_them() -> None:
    norm = snapshot(Convolution(seen=1), 0, None).get_submodule("2")
    assert norm.get_buffer("running_mean").tolist() == [0, 0, 0, 0]
    assert norm.get_buffer("running_var").tolist() == [1, 1, 1, 1]


def test_training_is_in_train_mode_however_the_model_comes() -> None:
    asleep = snapshot(Convolution(epochs=1, asleep=True), 0, None)
    assert same(asleep, snapshot(Convolution(epochs=1), 0, None))
    assert asleep.get_buffer("2.running_mean").abs().min() > 1


def test_initial_weights_are_the_model_s() -> None:
    problem = ResNet(depth=8)
    torch.manual_seed(11)
    expected = dict(problem.model().named_parameters())
    for name, parameter in snapshot(problem, 11, None).named_parameters():
        assert torch.equal(parameter, expected[name]), name


@pytest.mark.parametrize("depth", [20, 56, 110])
def test_logits_at_initialisation_are_moderate(depth: int) -> None:
    problem = ResNet(depth=depth)
    inputs, _ = batch(problem, problem.data(None), 0)
    with torch.no_grad():
        assert 0.1 < snapshot(problem, 0, None)(inputs).std() < 10


def test_batch_draws_training_samples_once_each() -> None:
    problem = Regression(samples=7)
    data = problem.data(None)
    inputs, targets = batch(problem, data, 0)
    rows = [int((data.train_inputs == x).all(1).nonzero()) for x in inputs]
    assert sorted(rows) == list(range(7))
    assert torch.equal(targets, data.train_targets[rows])


def test_batch_is_drawn_by_the_seed() -> None:
    problem = MLP(samples=20)
    data = problem.data(None)
    first, again, other = (batch(problem, data, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_batch_casts_floats_and_keeps_labels() -> None:
    inputs, targets = batch(MLP(), MLP().data(None), 0, "cpu", torch.float64)
    assert (inputs.dtype, targets.dtype) == (torch.float64, torch.int64)
    assert batch(Regression(), Regression().data(None), 0, "cpu", torch.float64)[1].dtype == torch.float64


def test_too_many_samples_are_named() -> None:
    with pytest.raises(ValueError, match=r"mlp\[samples=1438\]: samples=1438, but there are only 1437"):
        batch(MLP(samples=1438), MLP().data(None), 0)


def test_accuracy_counts_hits_over_batches() -> None:
    targets = torch.arange(1300) % 4
    outputs = nn.functional.one_hot(targets, 4).float()
    outputs[:325] = -outputs[:325] + torch.tensor([0.5, 0.4, 0.3, 0.2])  # never the target
    assert accuracy(nn.Identity(), Dataset(outputs, targets, outputs, targets)) == 0.75


def test_unknown_loss_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Regression, "loss", "hinge")
    with pytest.raises(ValueError, match="unknown loss 'hinge'"):
        snapshot(Regression(), 0, None)


def test_a_loss_of_torch_trains_on_outputs_as_they_come() -> None:
    """A network per pixel with classes in dimension 1, and a loss module whose mean leaves out ignored pixels."""
    torch.manual_seed(0)
    model, criterion = nn.Conv2d(1, 3, 1), nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=2)
    x, y = torch.randn(8, 1, 2, 3), torch.randint(3, (8, 2, 3))
    with torch.no_grad():
        before = float(criterion(model(x), y))
    assert evaluate(model, x, y, criterion)[0] == pytest.approx(before, rel=1e-5)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    epochs = list(train(model, Course(x, y, criterion, 8, 3), optimizer, schedule))
    with torch.no_grad():
        after = float(criterion(model(x), y))
    assert epochs[0].loss == pytest.approx(before, rel=1e-5) and after < before
