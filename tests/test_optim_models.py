"""Models that do not do the same at every step: modes, skipped layers, compiled code, frozen layers, later groups."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
from cases import mlp
from torch import Tensor, nn
from torch.nn import functional as F

import curvbench as cb
from curvbench import registry, states
from curvbench.instance import Instance
from curvbench.instance.tape import mode_readers
from curvbench.optim import NaturalGradient
from curvbench.states import trees

Batch = tuple[Tensor, Tensor]


def batches(count: int, samples: int = 8) -> list[Batch]:
    return [(torch.randn(samples, 5).double(), torch.randint(3, (samples,))) for _ in range(count)]


def train(optimizer: NaturalGradient, data: list[Batch]) -> None:
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(optimizer.forward(x, y), y).backward()
        optimizer.step()


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


# --- modes ------------------------------------------------------------------------------------------------


class Behind(nn.Module):
    """A branch behind weights that begin at zero, which ``branch`` computes from the mode."""

    def __init__(self, branch: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.inner, self.zero, self.last = (nn.Linear(a, b) for a, b in ((5, 6), (6, 6), (6, 6), (6, 3)))
        nn.init.zeros_(self.zero.weight)
        self.branch, self.steps = branch, 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += self.training
        hidden = torch.tanh(self.first(x))
        return self.last(hidden + self.zero(self.branch(self, torch.tanh(self.inner(hidden)))))


BRANCHES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "dropout": lambda model, x: F.dropout(x, 0.5, model.training),
    "scale": lambda model, x: 2 * x if model.training else x,
    "later": lambda model, x: 2 * x if model.steps > 2 and model.training else x,
    "none": lambda model, x: x,
}


@pytest.mark.parametrize("kind", BRANCHES)
def test_statistics_are_those_of_evaluation_mode_behind_zero_weights(kind: str) -> None:
    """Nothing of the branch shows in the first outputs. The judge is a copy of the model in evaluation mode."""
    model = Behind(BRANCHES[kind]).double().train()
    optimizer = NaturalGradient(model, cb.probe("diag", damping=0.1), 0.1)
    for batch in batches(5):
        judge = copy.deepcopy(model).eval()
        train(optimizer, [batch])
        terms = oracles.loss_terms(judge, *batch, "cross_entropy")
        expected = oracles.type2_fisher(terms, "cross_entropy").diagonal()
        assert oracles.relative(optimizer._curvature.state.diagonal(), expected) <= 1e-12


class Shares(nn.Module):
    """No module of it looks at its mode, though it has one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Listed(nn.Module):
    """Its subclasses have to give a name."""

    def __init_subclass__(cls, *, name: str) -> None:
        assert name


class Looks(Listed, name="looks"):
    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else 2 * x


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        (nn.Dropout(0.0), ["Dropout"]),
        (nn.BatchNorm1d(5), ["BatchNorm1d"]),
        (nn.BatchNorm1d(5).eval(), []),
        (Looks(), ["Looks"]),
        (nn.ReLU(), []),
    ],
    ids=repr,
)
def test_modules_that_look_at_their_mode_are_found(layer: nn.Module, found: list[str]) -> None:
    """Only those that are in training mode; and each has its own class back."""
    model = nn.Sequential(layer, Shares())
    kinds = [type(module) for module in model.modules()]
    with mode_readers(model) as readers:
        model(torch.randn(4, 5))
    assert [type(module).__name__ for module in readers] == found
    assert [type(module) for module in model.modules()] == kinds
    assert not any("looked" in key for module in model.modules() for key in vars(module))


def test_a_pass_that_fails_leaves_the_modules_as_they_were() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(5, 3))
    with pytest.raises(RuntimeError), mode_readers(model):
        model(torch.randn(4, 7))
    assert [type(module) for module in model] == [nn.Dropout, nn.Linear]
    assert not any("looked" in key for module in model.modules() for key in vars(module))


# --- skipped layers ---------------------------------------------------------------------------------------


class Deep(nn.Module):
    """Residual layers, of which ``off`` are skipped, in both modes."""

    def __init__(self, off: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)
        self.middle = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.off = off

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        for k, layer in enumerate(self.middle):
            hidden = hidden if k in self.off else hidden + torch.tanh(layer(hidden))
        return self.last(hidden)


class Dropped(Deep):
    """The same in training mode alone."""

    def forward(self, x: Tensor) -> Tensor:
        off, self.off = self.off, self.off if self.training else ()
        out = super().forward(x)
        self.off = off
        return out


def trained_with_a_gap(name: str, **options: Any) -> tuple[Deep, NaturalGradient, Any, list[Tensor]]:
    """A step, then one in which the middle layer 1 is skipped: the state and the parameters before that."""
    torch.manual_seed(0)
    model = Deep().double()
    optimizer = NaturalGradient(model, cb.probe(name), 1e-3, momentum=0.5, **options)
    first, second = batches(2)
    train(optimizer, [first])
    before, start = optimizer._curvature.state, values(model)
    model.off = (1,)
    train(optimizer, [second])
    model.off = ()
    return model, optimizer, before, start


LAYERWISE = sorted(name for name, kind in registry.probes().items() if kind.is_layerwise)


@pytest.mark.parametrize("name", LAYERWISE)
def test_a_skipped_layer_keeps_its_statistics(name: str) -> None:
    model, optimizer, before, _ = trained_with_a_gap(name)
    number, layer = next((n, la) for n, la in enumerate(optimizer._verified.layers) if la.name == "middle.1")
    after = optimizer._curvature.state
    pairs = list(zip(*(own(state, number, layer, optimizer) for state in (before, after)), strict=True))
    assert pairs and all(torch.equal(a, b) for a, b in pairs)
    others = list(zip(states.tensors(before), states.tensors(after), strict=True))
    assert not all(torch.equal(a, b) for a, b in others if a.shape == b.shape)
    train(optimizer, batches(2))  # and goes on
    assert all(value.isfinite().all() for value in values(model))


def own(state: Any, number: int, layer: Any, optimizer: NaturalGradient) -> list[Tensor]:
    """The tensors of a state that belong to a layer."""
    if isinstance(state, Tensor):
        return [state[layer.slice]] if state.shape == (optimizer._verified.size,) else []
    if isinstance(state, list) and len(state) == len(optimizer._verified.layers):
        return states.tensors(state[number])
    return [t for part in (trees._children(state) or {}).values() for t in own(part, number, layer, optimizer)]


@pytest.mark.parametrize("name", sorted(registry.probes()))
def test_a_skipped_layer_is_not_moved(name: str) -> None:
    model, _, _, start = trained_with_a_gap(name)
    moved = {n: not torch.equal(a, b) for (n, a), b in zip(model.named_parameters(), start, strict=True)}
    assert not any(moved[n] for n in moved if n.startswith("middle.1."))
    assert all(moved[n] for n in moved if not n.startswith("middle.1."))


@pytest.mark.parametrize("name", ["full", "eigen"])
def test_elsewhere_a_skipped_layer_has_no_scores(name: str) -> None:
    """The other layers' Fisher is that of the network without it."""
    torch.manual_seed(0)
    model = Deep().double()
    probe = cb.probe(name, damping=0.1, **({"rank": 12} if name == "eigen" else {}))
    optimizer = NaturalGradient(model, probe, 0.1)
    first, (x, y) = batches(2)
    train(optimizer, [first])
    model.off = (1,)
    start = copy.deepcopy(model)
    train(optimizer, [(x, y)])
    lost = next(la.slice for la in optimizer._verified.layers if la.name == "middle.1")
    dense = optimizer._curvature.probe.operator(optimizer._curvature.state).to_dense()
    assert not dense[lost].any() and not dense[:, lost].any()
    if name == "full":
        terms = oracles.loss_terms(start, x, y, "cross_entropy")
        fisher = oracles.type2_fisher(terms, "cross_entropy")
        gradient = oracles.mean_gradient(terms, "cross_entropy")
        step = torch.linalg.solve(fisher + 0.1 * torch.eye(len(fisher)).double(), gradient)
        moved = oracles.pack(start, dict(start.named_parameters())) - oracles.pack(
            model, dict(model.named_parameters())
        )
        assert oracles.relative(moved.detach() / 0.1, step) <= 1e-9


def test_a_running_average_leaves_out_the_batches_that_skip_a_layer() -> None:
    """K-FAC's factors by hand, from the batches that each layer has seen."""
    torch.manual_seed(0)
    model = Deep().double()
    optimizer = NaturalGradient(model, cb.probe("kfac", damping=0.1), 0.1, ema=0.8)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for batch, off in zip(batches(5), ((), (0, 1), (), (2,), (1,)), strict=True):
        model.off = off
        judge = copy.deepcopy(model)
        for k in off:
            judge.middle[k] = nn.Identity()
        for name, (group,) in oracles.layer_factors(judge, *batch, "cross_entropy", "type-2").items():
            new = oracles.kfac_factors(group)
            factors[name] = tuple(0.8 * o + 0.2 * n for o, n in zip(factors.get(name, new), new, strict=True))
        train(optimizer, [batch])
    for layer, found in zip(optimizer._verified.layers, optimizer._curvature.state.factors, strict=True):
        left, right = factors[layer.name]
        assert oracles.relative(found.left[0], left) <= 1e-12 and oracles.relative(found.right[0], right) <= 1e-12


def test_a_layer_that_training_alone_skips_has_the_statistics_of_evaluation_mode() -> None:
    torch.manual_seed(0)
    model = Dropped((1,)).double().train()
    optimizer = NaturalGradient(model, cb.probe("kfac", damping=0.1), 0.1)
    for batch in batches(3):
        judge = copy.deepcopy(model).eval()
        train(optimizer, [batch])
        for name, (group,) in oracles.layer_factors(judge, *batch, "cross_entropy", "type-2").items():
            number = next(n for n, la in enumerate(optimizer._verified.layers) if la.name == name)
            left, _ = oracles.kfac_factors(group)
            assert oracles.relative(optimizer._curvature.state.factors[number].left[0], left) <= 1e-12


def test_parts_of_a_batch_skip_the_same_layers() -> None:
    model = Deep().double()
    optimizer = NaturalGradient(model, cb.probe("kfac"), 0.1)
    x, y = batches(1)[0]
    train(optimizer, [(x, y)])
    optimizer.zero_grad()
    for rows, off in ((slice(4), (1,)), (slice(4, 8), ())):
        model.off = off
        F.cross_entropy(optimizer.forward(x[rows], y[rows]), y[rows]).backward()
    with pytest.raises(ValueError, match=r"some parts of the batch skip layer 'middle\.1' and others do not"):
        optimizer.step()


# --- compiled and scripted models -------------------------------------------------------------------------


def in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def inside(model: nn.Module) -> nn.Module:
    model.body.compile(backend="eager")
    return model


def wrapped(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize("compiled", [in_place, inside, wrapped])
@pytest.mark.filterwarnings("ignore")  # torch's own
def test_compiled_models_train_to_the_same_bits(compiled: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    plain = Shares().double()
    other = compiled(copy.deepcopy(plain))
    data = batches(4)
    for model in (plain, other):
        train(NaturalGradient(model, cb.probe("kfac", damping=0.1), 0.1, 0.9, stat_every=2), data)
    assert all(map(torch.equal, values(plain), values(other)))
    x, y = data[0]
    fishers = [cb.exact_fisher(Instance(model, x, y)).to_dense() for model in (plain, other)]
    assert torch.equal(*fishers)


def test_a_scripted_model_is_refused_in_one_line() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would have everybody compile
        scripted = torch.jit.script(mlp(5, 6, 3).double())
    with pytest.raises(ValueError, match=r"^a scripted module cannot be measured: give the eager module"):
        train(NaturalGradient(scripted, cb.probe("kfac")), batches(1))


# --- groups and frozen layers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "no parameter of the model"),
        ({"lr": -1.0}, "lr must be finite and not negative, got -1.0"),
        ({"weight_decay": float("inf")}, "weight_decay must be finite"),
        ({"momentum": 1.0}, "momentum must lie in"),
    ],
    ids=str,
)
def test_a_group_that_does_not_fit_is_refused_and_not_added(settings: dict[str, float], text: str) -> None:
    model = mlp(5, 6, 3).double()
    optimizer = NaturalGradient(model, cb.probe("kfac"), params=[model[0].weight])
    added = [model[0].bias] if settings else [nn.Parameter(torch.ones(2))]
    with pytest.raises(ValueError, match=text):
        optimizer.add_param_group({"params": added, **settings})
    assert len(optimizer.param_groups) == 1
    train(optimizer, batches(1))


def test_a_group_of_parameters_that_are_trained_already_is_refused_as_torch_does() -> None:
    model = mlp(5, 6, 3).double()
    with pytest.raises(ValueError, match="more than one parameter group"):
        NaturalGradient(model, cb.probe("kfac")).add_param_group({"params": [model[0].weight]})


def test_a_later_group_trains_like_one_that_was_there() -> None:
    torch.manual_seed(0)
    first = mlp(5, 6, 3).double()
    second = copy.deepcopy(first)
    late = NaturalGradient(first, cb.probe("kfac"), 0.1, params=first[0].named_parameters())
    late.add_param_group({"params": first[2].named_parameters(), "lr": 0.05})
    groups = [{"params": second[0].parameters()}, {"params": second[2].parameters(), "lr": 0.05}]
    data = batches(3)
    train(late, data)
    train(NaturalGradient(second, cb.probe("kfac"), 0.1, params=groups), data)
    assert all(map(torch.equal, values(first), values(second)))


@pytest.mark.parametrize("frozen_first", [False, True])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_layer_that_is_frozen_or_released_later_is_named(name: str, frozen_first: bool) -> None:
    model = mlp(5, 6, 4, 3).double()
    model[2].get_parameter(name).requires_grad_(not frozen_first)
    optimizer = NaturalGradient(model, cb.probe("kfac"), 0.1, stat_every=5)
    train(optimizer, batches(1))
    model[2].get_parameter(name).requires_grad_(frozen_first)
    before = values(model)
    was, now = ("frozen", "trained") if frozen_first else ("trained", "frozen")
    with pytest.raises(ValueError, match=rf"^'2\.{name}' was {was} in the first batch and is {now} now: make a new"):
        train(optimizer, batches(1))
    assert all(map(torch.equal, values(model), before))


def test_parameters_outside_the_layers_may_be_frozen_later() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3)).double()
    optimizer = NaturalGradient(model, cb.probe("kfac"), 0.1, parameters="weights")
    train(optimizer, batches(1))
    model[1].requires_grad_(False)
    before = values(model[1])
    train(optimizer, batches(1))
    assert all(map(torch.equal, values(model[1]), before))
