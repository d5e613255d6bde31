"""A plain loop trains: oracles by plain autograd, and ``forward``, which other tests hold against oracles."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
from cases import mlp, nasty_cnn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import curvbench as cb
from curvbench import registry
from curvbench.instance.likelihood import likelihood
from curvbench.optim import NaturalGradient
from curvbench.optim.curvature import Checks
from curvbench.optim.hooks import Hook
from curvbench.optim.terms import targets_of
from curvbench.spec import Diverged

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
ROUNDING = 1e-10  # of steps whose statistics come from differently ordered sums


def vectors(count: int = 4, samples: int = 6) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(samples, 5, generator=generator).double(), torch.randint(3, (samples,), generator=generator))
        for _ in range(count)
    ]


def small() -> nn.Module:
    torch.manual_seed(0)
    return mlp(5, 6, 3).double()


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def kfac(model: nn.Module, **options: Any) -> NaturalGradient:
    return NaturalGradient(model, cb.probe("kfac", damping=0.1), 0.1, 0.9, **options)


def plainly(
    optimizer: NaturalGradient, batches: list[Batch], loss: Loss = cross_entropy, model: nn.Module | None = None
) -> nn.Module:
    """The loop that everybody writes."""
    for x, y in batches:
        optimizer.zero_grad()
        loss((model or optimizer.model)(x), y).backward()
        optimizer.step()
    return optimizer.model


def naturally(optimizer: NaturalGradient, batches: list[Batch], loss: Loss = cross_entropy) -> nn.Module:
    for x, y in batches:
        optimizer.zero_grad()
        loss(optimizer.forward(x, y), y).backward()
        optimizer.step()
    return optimizer.model


def distance(first: nn.Module, second: nn.Module) -> float:
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def near(first: nn.Module, second: nn.Module, tolerance: float = ROUNDING) -> bool:
    return distance(first, second) <= tolerance


def both(model: nn.Module, batches: list[Batch], loss: Loss = cross_entropy, **options: Any) -> float:
    """How far a plain loop and one of ``forward`` end from each other, with the same random numbers."""
    ends = []
    for run in (plainly, naturally):
        torch.manual_seed(5)
        ends.append(run(kfac(copy.deepcopy(model), **options), batches, loss))
    assert distance(ends[0], model) > 1e-4
    return distance(*ends)


# --- oracles ----------------------------------------------------------------------------------------------


def test_full_makes_the_dense_natural_gradient_step() -> None:
    """Dense Fishers over all parameters by plain autograd."""
    model, judge = small(), small()
    optimizer = NaturalGradient(model, cb.probe("full", damping=0.1), 0.5, momentum=0.6)
    velocity = torch.zeros(sum(p.numel() for p in judge.parameters())).double()
    for x, y in vectors():
        plainly(optimizer, [(x, y)])
        terms = oracles.batch_terms(judge, x, y)
        dense = oracles.type2_fisher(terms, "cross_entropy") + 0.1 * torch.eye(len(velocity)).double()
        velocity = 0.6 * velocity + torch.linalg.solve(dense, oracles.mean_gradient(terms, "cross_entropy"))
        torch.nn.utils.vector_to_parameters(
            torch.nn.utils.parameters_to_vector(judge.parameters()).detach() - 0.5 * velocity, judge.parameters()
        )
        assert near(model, judge, 1e-12)


def test_kfac_makes_the_step_of_factors_by_hand() -> None:
    model, judge = small(), small()
    optimizer = NaturalGradient(model, cb.probe("kfac", damping=0.1), 0.1)
    for x, y in vectors():
        plainly(optimizer, [(x, y)])
        dense = oracles.kfac(oracles.layer_factors(judge, x, y, "cross_entropy", "type-2"))
        gradient = oracles.mean_gradient(oracles.loss_terms(judge, x, y, "cross_entropy"), "cross_entropy")
        step = torch.linalg.solve(dense + 0.1 * torch.eye(len(dense)).double(), gradient)
        with torch.no_grad():
            for name, layer in oracles.covered_layers(judge).items():
                matrix = step[oracles.layer_slices(judge)[name]].reshape(len(layer.weight), -1)
                layer.weight.sub_(0.1 * matrix[:, :-1])
                layer.bias.sub_(0.1 * matrix[:, -1])
        assert near(model, judge, 1e-12)


def test_training_statistics_are_those_of_the_pass_that_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its dropped units: the first batch repeats its pass, later ones are recorded. Plain autograd judges."""
    monkeypatch.setattr(Checks, "due", lambda *_: False)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3)).double()
    optimizer = NaturalGradient(model, cb.probe("diag", damping=0.1), 0.1, statistics="training")
    for seed, (x, y) in enumerate(vectors()):
        judge = copy.deepcopy(model)
        torch.manual_seed(seed)
        plainly(optimizer, [(x, y)])
        torch.manual_seed(seed)
        diagonal = oracles.type2_fisher(oracles.batch_terms(judge, x, y), "cross_entropy").diagonal()
        torch.nn.utils.vector_to_parameters(diagonal, judge.parameters())
        packed = optimizer._verified.pack(dict(judge.named_parameters()))
        assert oracles.relative(optimizer._curvature.state.diagonal(), packed.detach()) <= 1e-12


# --- against forward --------------------------------------------------------------------------------------

MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: mlp(5, 6, 3),
    "modes": lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3)),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", sorted(registry.probes()))
def test_every_probe_makes_the_step_of_forward(name: str, kind: str) -> None:
    ends = []
    for run in (plainly, naturally):
        torch.manual_seed(0)
        optimizer = NaturalGradient(MODELS[kind]().double(), cb.probe(name), 1e-3, 0.9)
        ends.append(run(optimizer, vectors(3, samples=8)))
    assert near(*ends)


@pytest.mark.parametrize("statistics", ["auto", "evaluation", "training"])
def test_a_choice_of_statistics_holds_for_both_ways(statistics: str) -> None:
    torch.manual_seed(0)
    model = nasty_cnn().double().train()
    data = [(torch.randn(6, 2, 9, 9).double(), torch.randint(3, (6,))) for _ in range(3)]
    assert both(model, data, statistics=statistics) <= ROUNDING


def test_the_three_statistics_differ_where_modes_do() -> None:
    torch.manual_seed(0)
    model = MODELS["modes"]().double()
    ends = []
    for statistics in ("auto", "evaluation", "training"):
        torch.manual_seed(1)
        ends.append(plainly(kfac(copy.deepcopy(model), statistics=statistics), vectors()))
    assert near(ends[0], ends[1], 0.0)
    assert not near(ends[0], ends[2], 1e-4)


class Tokens(nn.Module):
    """Tokens (N, T) to classes of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm, self.last = nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.norm(self.embedding(tokens)))


def padded() -> list[Batch]:
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([4, 2, 1, 3, 4])[:, None]
    labels = [torch.randint(3, (5, 4), generator=generator) for _ in range(3)]
    masked = [y.masked_fill(torch.arange(4) >= lengths, -100) for y in labels]
    return [(torch.randint(7, (5, 4), generator=generator), y) for y in masked]


@pytest.mark.parametrize("fisher_type", ["type-2", "mc", "empirical"])
def test_a_padded_batch_is_that_of_forward(fisher_type: str) -> None:
    torch.manual_seed(0)
    models = [Tokens().double()]
    models.append(copy.deepcopy(models[0]))
    probe = cb.probe("kfac", damping=0.1, fisher_type=fisher_type)
    first, second = (NaturalGradient(model, probe, 0.1) for model in models)
    assert near(plainly(first, padded()), naturally(second, padded()), 1e-12)


def test_outputs_that_are_arranged_are_read_as_they_come() -> None:
    """Classes of pixels, (N, C, H, W); the judge's model has its classes last."""

    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(2).mT

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1)).double()
    judge = nn.Sequential(*copy.deepcopy(model), Last())
    data = [(torch.randn(4, 2, 4, 5).double(), torch.randint(3, (4, 4, 5))) for _ in range(3)]
    flat = [(x, y.flatten(1)) for x, y in data]
    assert near(plainly(kfac(model), data, F.cross_entropy), naturally(kfac(judge), flat))


# --- losses -----------------------------------------------------------------------------------------------

WEIGHTS = torch.tensor([1.0, 2.0, 0.5]).double()
CRITERIA = {
    "cross entropy": nn.CrossEntropyLoss(),
    "its sum": nn.CrossEntropyLoss(reduction="sum"),
    "weights": nn.CrossEntropyLoss(WEIGHTS),
    "smoothing": nn.CrossEntropyLoss(label_smoothing=0.2),
    "both": nn.CrossEntropyLoss(WEIGHTS, label_smoothing=0.2),
    "binary": nn.BCEWithLogitsLoss(pos_weight=WEIGHTS),
    "squares": nn.MSELoss(),
    "sum of squares": nn.MSELoss(reduction="sum"),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_targets_are_read_under_every_criterion(name: str) -> None:
    """By the empirical Fisher, which has them."""
    criterion, data = CRITERIA[name], vectors()
    if not isinstance(criterion, nn.CrossEntropyLoss):
        data = [(x, F.one_hot(y, 3).double()) for x, y in data]
    probe, settings = cb.probe("kfac", damping=0.1, fisher_type="empirical"), {"kl_clip": 1e-2, "loss": criterion}
    first, second = (NaturalGradient(small(), probe, 0.1, **settings) for _ in range(2))
    assert near(plainly(first, data, criterion), naturally(second, data, criterion), 1e-9)


def test_the_named_gaussian_loss_is_the_mean_over_terms() -> None:
    data = [(x, torch.randn(6, 3).double()) for x, _ in vectors()]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum(-1).mean() / 2

    first, second = (kfac(small(), loss="gaussian") for _ in range(2))
    assert near(plainly(first, data, loss), naturally(second, data, loss))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 300.0])
def test_labels_are_read_from_rounded_and_saturated_gradients(dtype: torch.dtype, size: float) -> None:
    torch.manual_seed(0)
    outputs = (size * torch.randn(40, 5)).to(dtype).requires_grad_()
    labels = torch.randint(5, (40,))
    labels[3] = -100
    (0.3 * F.cross_entropy(outputs, labels)).backward()
    found = targets_of(likelihood("cross_entropy"), outputs.detach(), outputs.grad)
    clear = (outputs.grad != 0).any(-1)  # a term whose other classes underflow is none
    assert torch.equal(found[clear], labels[clear])
    assert (found[~clear] == -100).all()


OTHERS: dict[str, Loss] = {
    "smoothing": lambda f, y: F.cross_entropy(f, y, label_smoothing=0.1),
    "weights": lambda f, y: F.cross_entropy(f, y, WEIGHTS),
    "penalty": lambda f, y: F.cross_entropy(f, y) + 0.01 * f.square().mean(),
    "terms": lambda f, y: (torch.arange(6) * F.cross_entropy(f, y, reduction="none")).mean(),
    "ascent": lambda f, y: -F.cross_entropy(f, y),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_gradient_of_another_loss_is_refused(name: str) -> None:
    model = small()
    before = copy.deepcopy(model)
    with pytest.raises(
        ValueError, match=r"^the gradient at the outputs is no multiple of that of cross_entropy"
    ) as said:
        plainly(kfac(model), vectors(1), OTHERS[name])
    assert "optimizer.forward(inputs, targets)" in str(said.value) and "\n" not in str(said.value)
    assert near(model, before, 0.0)


def test_a_loss_without_terms_or_with_others_targets_is_refused() -> None:
    with pytest.raises(ValueError, match="no loss term is left"):
        plainly(kfac(small()), vectors(1), lambda f, y: 0 * F.cross_entropy(f, y))
    loss = nn.GaussianNLLLoss()
    with pytest.raises(ValueError, match="targets of GaussianNLLLoss cannot be told from the loss's gradient"):
        plainly(kfac(small(), loss=loss), vectors(1), lambda f, _: loss(f, f.detach() + 1, f.exp()))


def test_an_endless_gradient_has_diverged() -> None:
    with pytest.raises(Diverged, match="the gradient holds NaN or infinity"):
        plainly(kfac(small()), vectors(1), lambda f, y: float("inf") * F.cross_entropy(f, y))


# --- several passes of a step -----------------------------------------------------------------------------


def test_parts_of_a_batch_gather() -> None:
    optimizer = kfac(small())
    for x, y in vectors():
        optimizer.zero_grad()
        for rows in (slice(0, 2), slice(2, 4), slice(4, 6)):
            (F.cross_entropy(optimizer.model(x[rows]), y[rows]) / 3).backward()
        optimizer.step()
    assert near(optimizer.model, naturally(kfac(small()), vectors()))


def test_two_passes_of_one_backward_pass_gather_among_others_without_gradient() -> None:
    optimizer = kfac(small())
    for x, y in vectors():
        optimizer.zero_grad()
        first, second = optimizer.model(x[:3]), optimizer.model(x[3:])
        optimizer.model(torch.randn(2, 5).double())  # to log something
        ((F.cross_entropy(first, y[:3]) + F.cross_entropy(second, y[3:])) / 2).backward()
        optimizer.model(torch.randn(2, 5).double())
        with torch.no_grad():
            optimizer.model(x)
        optimizer.step()
    assert near(optimizer.model, naturally(kfac(small()), vectors()))


def test_two_backward_passes_through_one_pass_add_up() -> None:
    optimizer = kfac(small())
    for x, y in vectors():
        optimizer.zero_grad()
        loss = F.cross_entropy(optimizer.model(x), y)
        (0.25 * loss).backward(retain_graph=True)
        (0.75 * loss).backward()
        optimizer.step()
    assert near(optimizer.model, naturally(kfac(small()), vectors()))


@pytest.mark.parametrize("late", [False, True])
def test_a_batch_whose_gradient_was_thrown_away_does_not_count(late: bool) -> None:
    optimizer = kfac(small())
    for x, y in vectors():
        F.cross_entropy(optimizer.model(-x), y).backward()
        optimizer.zero_grad() if not late else None
        outputs = optimizer.model(x)
        optimizer.zero_grad()
        F.cross_entropy(outputs, y).backward()
        optimizer.step()
    assert near(optimizer.model, naturally(kfac(small()), vectors()))


def test_a_closure_makes_the_same_step() -> None:
    optimizer = kfac(small())
    for x, y in vectors():

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(optimizer.model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert near(optimizer.model, naturally(kfac(small()), vectors()))


@pytest.mark.parametrize("order", ["fp", "pf"])
def test_calls_of_both_kinds_in_a_step_are_refused(order: str) -> None:
    optimizer, (x, y) = kfac(small()), vectors(1)[0]
    with pytest.raises(ValueError, match=r"^a step had calls of the model and of optimizer\.forward"):
        for kind in order:
            F.cross_entropy(optimizer.forward(x, y) if kind == "f" else optimizer.model(x), y).backward()
        optimizer.step()


def test_steps_of_either_kind_may_alternate() -> None:
    optimizer, data = kfac(small(), stat_every=2), vectors(6)
    for k, batch in enumerate(data):
        (plainly if k % 3 else naturally)(optimizer, [batch])
    assert near(optimizer.model, naturally(kfac(small(), stat_every=2), data))


def test_a_probe_that_weighs_samples_says_that_it_needs_targets_first() -> None:
    with pytest.raises(ValueError, match=r"^fngd weighs samples .*optimizer\.forward\(inputs, targets\)$"):
        plainly(NaturalGradient(small(), cb.probe("fngd", stage="shared")), vectors(1))
    optimizer = NaturalGradient(small(), cb.probe("fngd", stage="shared"), 0.1, kl_clip=1e-2)  # the clip weighs nothing
    plainly(optimizer, vectors(2))


# --- what costs nothing -----------------------------------------------------------------------------------


def test_passes_that_are_of_no_interest_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, (x, y) = kfac(small(), stat_every=3), vectors(1)[0]
    monkeypatch.setattr("curvbench.optim.optimizer.open_pass", lambda *_: pytest.fail("was followed"))
    with torch.no_grad():
        optimizer.model(x)
    cb.exact_fisher(cb.Instance(optimizer.model, x, y))
    monkeypatch.undo()
    plainly(optimizer, [(x, y)])
    monkeypatch.setattr("curvbench.optim.optimizer.open_pass", lambda *_: pytest.fail("was followed"))
    plainly(optimizer, [(x, y)] * 2)


def test_statistics_share_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checks, "due", lambda *_: False)
    for kind, passes in (("mlp", 1), ("modes", 2)):
        optimizer = kfac(MODELS[kind]().double())
        first, *rest = vectors()
        plainly(optimizer, [first])
        calls: list[int] = []
        optimizer.model.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        plainly(optimizer, rest)
        assert len(calls) == passes * len(rest)


def test_the_graph_goes_with_the_step_though_the_loop_holds_on_to_its_loss() -> None:
    optimizer = kfac(small())
    for x, y in vectors(2):
        optimizer.zero_grad()
        loss = F.cross_entropy(optimizer.model(x), y)
        loss.backward(retain_graph=True)
        tape = weakref.ref(optimizer._arrived[0].tape) if optimizer._arrived[0].tape else None
        optimizer.step()
    gc.collect()
    assert tape is not None and tape() is None
    with pytest.raises(ValueError, match=r"^step\(\) has let go of the graph"):
        loss.backward()


def test_outputs_that_are_dropped_take_their_record_along() -> None:
    optimizer = kfac(small())
    plainly(optimizer, vectors(1))
    records = len([o for o in gc.get_objects() if type(o).__name__ == "Tape"])
    optimizer.model(vectors(1)[0][0])
    gc.collect()
    assert len([o for o in gc.get_objects() if type(o).__name__ == "Tape"]) <= records
    assert optimizer._arrived == []


# --- gradients of any kind --------------------------------------------------------------------------------


def gradients_of(model: nn.Module) -> list[Tensor]:
    x, y = vectors()[1]
    return list(torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters())))


def of_some(model: nn.Module) -> list[Tensor]:
    x, y = vectors()[1]
    F.cross_entropy(model(x), y).backward(inputs=[model[0].weight])
    assert model[2].weight.grad is None
    return [model[0].weight.grad]


def under_hooks(model: nn.Module) -> list[Tensor]:
    x, y = vectors()[1]
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: 3 * gradient)
    F.cross_entropy(model(x), y).backward()
    return [p.grad for p in model.parameters()]


def of_a_penalty(model: nn.Module) -> list[Tensor]:
    """Second derivatives, with a loss of inputs."""
    x, y = vectors()[1]
    loss = F.cross_entropy(model(x.requires_grad_()), y)
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    (loss + slope.square().sum()).backward()
    return [*(p.grad for p in model.parameters()), x.grad]


def of_what_stands_before(model: nn.Module) -> list[Tensor]:
    """A network whose outputs the model reads, and which the loss reads too."""
    torch.manual_seed(3)
    before, z, y = nn.Linear(2, 5).double(), torch.randn(6, 2).double(), vectors()[1][1]
    hidden = torch.tanh(before(z))
    (F.cross_entropy(model(hidden), y) + hidden.square().sum()).backward()
    return [*(p.grad for p in model.parameters()), before.weight.grad]


@pytest.mark.parametrize("way", [gradients_of, of_some, under_hooks, of_a_penalty, of_what_stands_before])
def test_gradients_through_a_recorded_pass_are_those_of_the_model(way: Callable[[nn.Module], list[Tensor]]) -> None:
    optimizer = kfac(small())
    plainly(optimizer, vectors(1))
    optimizer.zero_grad()
    seen, plain = optimizer.model, copy.deepcopy(optimizer.model)
    assert type(seen(vectors()[1][0]).grad_fn).__name__ == "_KeptBackward"
    for found, expected in zip(way(seen), way(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)


def test_a_gradient_that_does_not_add_up_is_no_batch() -> None:
    optimizer = kfac(small())
    for x, y in vectors():
        optimizer.zero_grad()
        for seen in (-x, 2 * x, x):
            loss = F.cross_entropy(optimizer.model(seen), y)
            torch.autograd.grad(loss, list(optimizer.model.parameters()), retain_graph=True)
        loss.backward()
        F.cross_entropy(optimizer.model(x.requires_grad_()), y).backward(inputs=[x])
        optimizer.step()
    assert near(optimizer.model, naturally(kfac(small()), vectors()))


# --- copies, and the end ----------------------------------------------------------------------------------


def hooks(model: nn.Module) -> int:
    return sum(isinstance(hook, Hook) for hook in (*model._forward_hooks.values(), *model._forward_pre_hooks.values()))


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"]
)
def test_copies_train_on_with_hooks_of_their_own(again: Callable[[Any], Any]) -> None:
    first, data = kfac(small()), vectors(6)
    plainly(first, data[:2])
    model, second = again((first.model, first))
    assert second.model is model and hooks(model) == hooks(first.model) == 2
    for optimizer in (first, second):
        plainly(optimizer, data[2:])
    assert near(first.model, model, 0.0)


def test_a_copied_model_alone_loses_its_hooks_at_its_first_pass() -> None:
    optimizer = kfac(small())
    average = copy.deepcopy(optimizer.model)
    average(vectors(1)[0][0])
    assert hooks(average) == 0
    plainly(optimizer, vectors())


def test_hooks_go_with_close_and_with_the_optimizer() -> None:
    model = small()
    with kfac(model) as optimizer:
        assert hooks(model) == 2
    assert hooks(model) == 0
    with pytest.raises(ValueError, match="no outputs of the model got a gradient"):
        plainly(optimizer, vectors(1))
    optimizer.zero_grad()
    naturally(optimizer, vectors(1))
    optimizer = kfac(model)
    del optimizer
    gc.collect()
    assert hooks(model) == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_pass_that_fails_leaves_nothing_open(error: type[BaseException]) -> None:
    class Fails(nn.Module):
        fails = False

        def __init__(self) -> None:
            super().__init__()
            self.inner = small()

        def forward(self, x: Tensor) -> Tensor:
            hidden: Tensor = self.inner(x)
            if self.fails:
                raise error
            return hidden

    model = Fails()
    optimizer = kfac(model)
    for batch in vectors():
        model.fails = True
        with pytest.raises(error):
            model(batch[0])
        model.fails = False
        plainly(optimizer, [batch])
    assert near(model.inner, naturally(kfac(small()), vectors()))
    assert torch._C._len_torch_function_stack() == 0 and type(model) is Fails


def test_what_is_written_between_pass_and_step_is_named() -> None:
    optimizer, (x, y) = kfac(small()), vectors(1)[0]
    plainly(optimizer, vectors(1))
    F.cross_entropy(optimizer.model(x), y).backward()
    x.mul_(2)
    with pytest.raises(ValueError, match=r"^the contents of the input changed between the forward pass and step"):
        optimizer.step()


def test_a_module_that_the_optimizer_does_not_know_is_said() -> None:
    model = small()
    with pytest.raises(ValueError, match="call the module that the optimizer was made with"):
        plainly(kfac(model), vectors(1), model=nn.Sequential(*model))


def test_an_unknown_choice_of_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="statistics must be 'auto', 'evaluation' or 'training', got 'train'"):
        kfac(small(), statistics="train")


# --- ways to train ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", [False, True])
def test_autocast_trains_with_and_without_a_scaler(scaled: bool) -> None:
    """The judge reads no gradient at the outputs and scales nothing."""
    models = [small().float(), small().float()]
    first, second = map(kfac, models)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    for x, y in [(x.float(), y) for x, y in vectors()]:
        for optimizer in (first, second):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(optimizer.model(x) if optimizer is first else optimizer.forward(x, y), y)
            if optimizer is first:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            else:
                loss.backward()
                optimizer.step()
    assert near(*models, 1e-6)


def test_a_scaler_in_float64_makes_the_same_step_and_leaves_out_an_endless_one() -> None:
    optimizer, scaler = kfac(small()), torch.amp.GradScaler("cpu")
    for k, (x, y) in enumerate(vectors(3) + vectors(1)):
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(optimizer.model(x), y) * (float("inf") if k == 1 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    kept = [batch for k, batch in enumerate(vectors(3) + vectors(1)) if k != 1]
    assert near(optimizer.model, naturally(kfac(small()), kept))


def in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def in_part(model: nn.Module) -> nn.Module:
    model[0].compile(backend="eager")
    return model


def outside(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


@pytest.mark.parametrize("compiled", [in_place, in_part, outside])
@pytest.mark.parametrize("knows", [False, True], ids=["before", "after"])
@pytest.mark.filterwarnings("ignore")  # torch's own
def test_compiled_models_train(compiled: Callable[[nn.Module], nn.Module], knows: bool) -> None:
    """``knows``: the optimizer gets the compiled model."""
    model = small()
    called = compiled(model) if knows else model
    optimizer = kfac(called, stat_every=2)
    called = called if knows else compiled(model)
    plainly(optimizer, vectors(), model=called)
    assert near(model, naturally(kfac(small(), stat_every=2), vectors()))


class Deep(nn.Module):
    """Residual layers, which a training pass drops at random or runs again in its backward pass."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.first, self.last, self.way = nn.Linear(5, 6), nn.Linear(6, 3), way
        self.middle = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        for layer in self.middle:
            if self.way == "checkpoints":
                hidden = hidden + checkpoint(lambda h, layer=layer: torch.tanh(layer(h)), hidden, use_reentrant=False)
            elif not (self.way == "drops" and self.training and float(torch.rand(())) < 0.5):
                hidden = hidden + torch.tanh(layer(hidden))
        return self.last(hidden)


@pytest.mark.parametrize("way", ["drops", "checkpoints"])
def test_layers_that_are_dropped_or_checkpointed_train(way: str) -> None:
    torch.manual_seed(0)
    assert both(Deep(way).double(), vectors(6)) <= ROUNDING


def test_checkpoints_change_nothing_for_a_method_without_layers() -> None:
    models = []
    for way in ("checkpoints", "none"):
        torch.manual_seed(0)
        optimizer = NaturalGradient(Deep(way).double(), cb.probe("full", damping=0.1), 0.1)
        models.append(plainly(optimizer, vectors()))
    assert near(*models)


def test_frozen_parts_stay_and_the_rest_makes_the_step_of_forward() -> None:
    model = small()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    judge = copy.deepcopy(model)
    assert near(plainly(kfac(model), vectors()), naturally(kfac(judge), vectors()))
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("call", ["positions", "keywords", "both"])
def test_arguments_come_in_any_form(call: str) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small()

        def forward(self, x: Tensor, shift: Tensor, sign: int = 1) -> Tensor:
            outputs: Tensor = self.inner(x + sign * shift)
            return outputs

    model = Sum()
    optimizer = kfac(model)
    for x, y in vectors():
        calls: dict[str, Callable[[], Tensor]] = {
            "positions": lambda x=x: model(x, x, -1),
            "keywords": lambda x=x: model(x=x, shift=x, sign=-1),
            "both": lambda x=x: model(x, sign=-1, shift=x),
        }
        optimizer.zero_grad()
        F.cross_entropy(calls[call](), y).backward()
        optimizer.step()
    judge = kfac(Sum())
    naturally(judge, [((x, x, -1), y) for x, y in vectors()])  # type: ignore[misc]
    assert near(model, judge.model)


def test_samples_of_another_shape_are_surveyed_anew() -> None:
    """Also slices of a parameter that are longer then."""

    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place, self.last = nn.Parameter(torch.randn(6, 4)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(x + self.place[: x.shape[1]]))

    torch.manual_seed(0)
    model = Placed().double()
    judge = copy.deepcopy(model)
    optimizer = NaturalGradient(model, cb.probe("full", damping=0.1), 0.1)
    for length in (4, 6, 4, 2):
        x, y = torch.randn(5, length, 4).double(), torch.randint(3, (5, length))
        plainly(optimizer, [(x, y)])
        terms = oracles.batch_terms(judge, x, y)
        dense = oracles.type2_fisher(terms, "cross_entropy")
        step = torch.linalg.solve(
            dense + 0.1 * torch.eye(len(dense)).double(), oracles.mean_gradient(terms, "cross_entropy")
        )
        vector = torch.nn.utils.parameters_to_vector(judge.parameters()).detach() - 0.1 * step
        torch.nn.utils.vector_to_parameters(vector, judge.parameters())
        assert near(model, judge)


def test_some_of_the_parameters_have_the_fisher_of_these() -> None:
    """``full`` couples all parameters that it covers; the others are constants."""
    model, judge = small(), small()
    names = ["2.weight", "2.bias"]
    assert names == [name for name, _ in model.named_parameters()][-2:]
    optimizer = NaturalGradient(model, cb.probe("full", damping=0.1), 0.5, params=list(model.parameters())[-2:])
    for x, y in vectors():
        plainly(optimizer, [(x, y)])
        terms = oracles.batch_terms(judge, x, y)
        count = sum(p.numel() for p in list(judge.parameters())[-2:])
        dense = oracles.type2_fisher(terms, "cross_entropy")[-count:, -count:] + 0.1 * torch.eye(count).double()
        step = torch.linalg.solve(dense, oracles.mean_gradient(terms, "cross_entropy")[-count:])
        flat = torch.nn.utils.parameters_to_vector(judge.parameters()).detach()
        flat[-count:] -= 0.5 * step
        torch.nn.utils.vector_to_parameters(flat, judge.parameters())
        assert near(model, judge, 1e-12)
