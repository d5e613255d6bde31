"""The optimizer on any probe: torch's own optimizers, dense natural gradients and plain loops are its oracles."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import oracles
import pytest
import torch
from cases import mlp, nasty_cnn
from torch import Tensor, nn
from torch.nn import functional as F

import curvbench as cb
from curvbench import registry
from curvbench.instance import Instance
from curvbench.meters.flops import FlopMeter
from curvbench.meters.memory import peak_memory
from curvbench.operators import Identity
from curvbench.optim import NaturalGradient
from curvbench.optim.curvature import Checks
from curvbench.spec import Diverged, Probe, StepRule, Unsupported

Batch = tuple[Tensor, Tensor]


def vectors(count: int, samples: int = 6, inputs: int = 5, classes: int = 3) -> list[Batch]:
    return [(torch.randn(samples, inputs).double(), torch.randint(classes, (samples,))) for _ in range(count)]


def images(count: int, samples: int = 6) -> list[Batch]:
    return [(torch.randn(samples, 2, 9, 9).double(), torch.randint(3, (samples,))) for _ in range(count)]


def plainly(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Batch]) -> None:
    """The loop that everybody writes."""
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def naturally(optimizer: NaturalGradient, batches: list[Batch]) -> None:
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(optimizer.forward(x, y), y).backward()
        optimizer.step()


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()] + [b.clone() for b in model.buffers()]


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(values(first), values(second), strict=True))


def near(first: nn.Module, second: nn.Module, tolerance: float) -> bool:
    return all(float((a - b).abs().max()) <= tolerance for a, b in zip(values(first), values(second), strict=True))


def pair(model: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    first = model().double().train()
    return first, copy.deepcopy(first)


MODELS = {
    "mlp": (lambda: mlp(5, 6, 4, 3), vectors),
    "batchnorm": (nasty_cnn, images),
    "dropout": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Dropout(), nn.ReLU(), nn.Linear(8, 3)), vectors),
}
SETTINGS = [{}, {"momentum": 0.9}, {"weight_decay": 0.1}, {"momentum": 0.5, "weight_decay": 0.01}]


# --- torch's optimizers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_identity_is_torch_sgd_to_the_last_bit(kind: str, settings: dict[str, float], dtype: torch.dtype) -> None:
    build, data = MODELS[kind]
    first, second = (model.to(dtype) for model in pair(build))
    batches = [(x.to(dtype), y) for x, y in data(8)]
    optimizer = NaturalGradient(first, cb.probe("identity"), 0.05, decoupled_weight_decay=False, **settings)
    torch.manual_seed(1)  # dropout draws the same
    naturally(optimizer, batches)
    torch.manual_seed(1)
    plainly(second, torch.optim.SGD(second.parameters(), 0.05, **settings), batches)
    assert same(first, second)


def test_groups_and_schedules_are_torch_s() -> None:
    first, second = pair(nasty_cnn)
    batches = images(9)
    optimizers = []
    for model in (first, second):
        weights = [p for p in model.parameters() if p.ndim > 1]
        rest = [p for p in model.parameters() if p.ndim == 1]
        groups = [{"params": weights, "weight_decay": 0.1}, {"params": rest, "lr": 0.2, "momentum": 0.0}]
        if model is first:
            probe = cb.probe("identity")
            optimizers.append(NaturalGradient(model, probe, 0.05, 0.9, params=groups, decoupled_weight_decay=False))
        else:
            optimizers.append(torch.optim.SGD(groups, 0.05, 0.9))
    schedules = [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5) for optimizer in optimizers]
    for batch in batches:
        naturally(optimizers[0], [batch])
        plainly(second, optimizers[1], [batch])
        for schedule in schedules:
            schedule.step()
    assert same(first, second)
    assert optimizers[0].param_groups[1]["lr"] == 0.2 * 0.5**4


def test_decoupled_weight_decay_shrinks_the_parameters() -> None:
    first, second = pair(lambda: mlp(5, 6, 3))
    batches = vectors(5)
    naturally(NaturalGradient(first, cb.probe("identity"), 0.1, 0.9, 0.3), batches)
    buffers = [torch.zeros_like(p) for p in second.parameters()]
    for x, y in batches:
        gradients = torch.autograd.grad(F.cross_entropy(second(x), y), list(second.parameters()))
        with torch.no_grad():
            for p, m, g in zip(second.parameters(), buffers, gradients, strict=True):
                m.copy_(0.9 * m + g)
                p.copy_((1 - 0.1 * 0.3) * p - 0.1 * m)
    assert near(first, second, 1e-14)


@pytest.mark.parametrize(
    ("name", "hyperparameters", "kind"),
    [
        ("adam", {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3}, torch.optim.Adam),
        ("adamw", {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3, "weight_decay": 0.1}, torch.optim.AdamW),
    ],
)
@pytest.mark.parametrize("kind_of_model", ["mlp", "dropout"])
def test_adam_is_torch_s(name: str, hyperparameters: dict[str, float], kind: Any, kind_of_model: str) -> None:
    build, data = MODELS[kind_of_model]
    first, second = pair(build)
    batches = data(20)
    torch.manual_seed(1)
    naturally(NaturalGradient(first, cb.probe(name, **hyperparameters), 0.03, momentum=0.9), batches)
    decay = {"weight_decay": hyperparameters["weight_decay"]} if name == "adamw" else {}
    torch.manual_seed(1)
    plainly(second, kind(second.parameters(), 0.03, betas=(0.8, 0.95), eps=1e-3, **decay), batches)
    assert near(first, second, 1e-12)


def test_sgdm_is_sgd_with_the_probe_s_momentum_where_it_covers() -> None:
    first, second = pair(nasty_cnn)
    batches = images(6)
    naturally(NaturalGradient(first, cb.probe("sgdm", momentum=0.7), 0.05, momentum=0.7), batches)
    plainly(second, torch.optim.SGD(second.parameters(), 0.05, momentum=0.7), batches)
    assert near(first, second, 1e-13)


# --- natural gradients ------------------------------------------------------------------------------------


def test_full_is_the_dense_natural_gradient() -> None:
    first, second = pair(lambda: mlp(5, 4, 3))
    batches = vectors(4, samples=9)
    naturally(NaturalGradient(first, cb.probe("full", damping=0.1), 0.5, momentum=0.6), batches)
    velocity = torch.zeros(sum(oracles.layer_sizes(second))).double()
    for x, y in batches:
        terms = oracles.loss_terms(second, x, y, "cross_entropy")
        dense = oracles.type2_fisher(terms, "cross_entropy") + 0.1 * torch.eye(len(velocity)).double()
        velocity = 0.6 * velocity + torch.linalg.solve(dense, oracles.mean_gradient(terms, "cross_entropy"))
        move(second, 0.5 * velocity)
    assert near(first, second, 1e-12)


def move(model: nn.Module, step: Tensor) -> None:
    """Subtract a parameter vector."""
    with torch.no_grad():
        for name, layer in oracles.covered_layers(model).items():
            matrix = step[oracles.layer_slices(model)[name]].reshape(layer.weight.shape[0], -1)
            columns = layer.weight[0].numel()
            layer.weight.sub_(matrix[:, :columns].reshape(layer.weight.shape))
            if layer.bias is not None:
                layer.bias.sub_(matrix[:, columns])


def test_full_reaches_least_squares_in_one_step() -> None:
    model = nn.Linear(4, 2).double()
    x, y = torch.randn(20, 4).double(), torch.randn(20, 2).double()
    optimizer = NaturalGradient(model, cb.probe("full", damping=1e-8), lr=1.0, loss="gaussian")
    loss = (optimizer.forward(x, y) - y).square().sum(1).mean() / 2
    loss.backward()
    optimizer.step()
    ones = torch.cat([x, torch.ones(20, 1).double()], dim=1)
    solution = torch.linalg.lstsq(ones, y).solution.T
    fitted = torch.cat([model.weight, model.bias[:, None]], dim=1).detach()
    assert oracles.relative(fitted, solution) <= 1e-6  # the damping over the smallest eigenvalue


def test_kl_clip_bounds_the_predicted_change() -> None:
    batches = vectors(1)
    first, second = pair(lambda: mlp(5, 6, 3))
    before = values(first)
    naturally(NaturalGradient(first, cb.probe("full", damping=1e-2), 0.3, kl_clip=1e-4), batches)
    naturally(NaturalGradient(second, cb.probe("full", damping=1e-2), 0.3), batches)
    free = torch.cat([(a - b).flatten() for a, b in zip(before, values(second), strict=True)]) / 0.3
    (x, y) = batches[0]
    start = copy.deepcopy(second)
    for p, value in zip(start.parameters(), before, strict=True):
        p.data.copy_(value)
    gradient = torch.autograd.grad(F.cross_entropy(start(x), y), list(start.parameters()))
    change = 0.3**2 * float(free @ torch.cat([g.flatten() for g in gradient]))
    assert change > 1e-4, "the clip has something to do"
    clipped = torch.cat([(a - b).flatten() for a, b in zip(before, values(first), strict=True)]) / 0.3
    assert oracles.relative(clipped, (1e-4 / change) ** 0.5 * free) <= 1e-10


def test_a_loose_kl_clip_changes_nothing() -> None:
    first, second = pair(lambda: mlp(5, 6, 3))
    batches = vectors(3)
    naturally(NaturalGradient(first, cb.probe("kfac"), 0.01, kl_clip=1e3), batches)
    naturally(NaturalGradient(second, cb.probe("kfac"), 0.01), batches)
    assert same(first, second)


# --- rules of the papers ----------------------------------------------------------------------------------


def test_ginger_takes_in_before_it_asks_and_averages_the_gradient() -> None:
    probe = cb.probe("ginger", rank=3, damping=0.5)
    first, second = pair(lambda: mlp(5, 6, 3))
    batches = vectors(5)
    naturally(NaturalGradient(first, probe, 0.1, momentum=0.8), batches)
    state, mean = None, 0.0
    for t, (x, y) in enumerate(batches):
        instance = Instance(second.eval(), x, y)
        state = probe.init(instance) if state is None else state
        state = cb.probe("ginger", rank=3, damping=0.5, seed=t).update(state, instance)
        mean = 0.8 * mean + 0.2 * instance.gradient()
        step = probe.precondition(probe.refresh(state), mean / (1 - 0.8 ** (t + 1)))
        assert float(step.abs().max()) <= 1.0, "the clip has nothing to do here"
        move(second, 0.1 * step)
    assert near(first, second, 1e-12)


def test_ginger_clips_every_entry() -> None:
    model = mlp(5, 6, 3).double()
    before = values(model)
    naturally(NaturalGradient(model, cb.probe("ginger", damping=1e-9), 0.1), vectors(1))
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, values(model), strict=True)])
    assert float(moved.abs().max()) == pytest.approx(0.1, rel=1e-12)


def test_qng_takes_in_after_it_has_asked_and_sums_the_gradient() -> None:
    probe = cb.probe("qng", memory=3)
    first, second = pair(lambda: mlp(5, 6, 3))
    batches = vectors(5)
    naturally(NaturalGradient(first, probe, 0.1, momentum=0.8), batches)
    state, total = None, 0.0
    for t, (x, y) in enumerate(batches):
        instance = Instance(second.eval(), x, y)
        state = probe.init(instance) if state is None else state
        total = 0.8 * total + instance.gradient()
        step = probe.precondition(state, total)
        state = cb.probe("qng", memory=3, seed=t).update(state, instance)
        move(second, 0.1 * step)
    assert near(first, second, 1e-12)


def test_fngd_is_exact_in_its_first_epoch_and_shares_afterwards() -> None:
    batches = vectors(3)
    shared, exact = pair(lambda: mlp(5, 6, 3))
    optimizer = NaturalGradient(shared, cb.probe("fngd", stage="shared", batches=2), 0.1)
    other = NaturalGradient(exact, cb.probe("fngd"), 0.1)
    naturally(optimizer, batches[:2])
    naturally(other, batches[:2])
    assert near(shared, exact, 1e-12)
    naturally(optimizer, batches[2:])
    naturally(other, batches[2:])
    assert not near(shared, exact, 1e-6)


def test_fngd_s_later_step_weighs_the_samples_of_the_training_pass() -> None:
    """BatchNorm in training mode. The judge: a pass per layer, whose output lets each sample's share through by c_n."""
    model = nasty_cnn().double().train()
    first, second = images(2)
    optimizer = NaturalGradient(model, cb.probe("fngd", stage="shared"), 0.1, parameters="weights")
    naturally(optimizer, [first])
    coefficients = optimizer._curvature.state.shared.average
    judge, (x, y) = copy.deepcopy(model), second
    expected = dict(zip([n for n, _ in judge.named_parameters()], gradients(judge, x, y), strict=True))
    for (name, layer), c in zip(oracles.covered_layers(judge).items(), coefficients, strict=True):

        def let_through(module: nn.Module, args: Any, out: Tensor, c: Tensor = c) -> Tensor:
            share = c.reshape(-1, *[1] * (out.ndim - 1))
            return share * out + (1 - share) * out.detach()

        handle = layer.register_forward_hook(let_through)
        weighted = dict(zip([n for n, _ in judge.named_parameters()], gradients(judge, x, y), strict=True))
        handle.remove()
        for key in (f"{name}.weight", f"{name}.bias"):
            if key in expected:
                assert oracles.relative(weighted[key], expected[key]) > 1e-3
                expected[key] = weighted[key]
    before = dict(zip(expected, values(model), strict=False))
    naturally(optimizer, [second])
    for name, parameter in model.named_parameters():
        moved = (before[name] - parameter.detach()) / 0.1
        assert oracles.relative(moved, expected[name]) <= 1e-9 or float(expected[name].norm()) <= 1e-12, name


def test_fngd_s_later_steps_leave_nothing_in_memory() -> None:
    """The nodes of a pass hold what weighs their samples; a node that held itself would wait for the collector."""
    optimizer = NaturalGradient(nasty_cnn().double().train(), cb.probe("fngd", stage="shared"), 0.1)
    naturally(optimizer, images(9))  # the ninth step is the last before the seventeenth in which the model is verified
    few, many = (peak_memory(lambda n=n: naturally(optimizer, images(1) * n), "cpu")[0] for n in (2, 5))
    assert few == many


def test_a_kept_graph_is_weighed_again() -> None:
    """Two backward passes through one graph give twice the gradient, and a freed graph is autograd's own error."""
    model, (batch, (x, y)) = nasty_cnn().double().train(), images(2)
    optimizer = NaturalGradient(model, cb.probe("fngd", stage="shared"), 0.1)
    naturally(optimizer, [batch])
    optimizer.zero_grad()
    outputs = optimizer.forward(x, y)
    F.cross_entropy(outputs, y).backward(retain_graph=True)
    once = [p.grad.clone() for p in model.parameters()]
    F.cross_entropy(outputs, y).backward()
    for p, grad in zip(model.parameters(), once, strict=True):
        assert oracles.relative(p.grad, 2 * grad) <= 1e-12 or float(grad.norm()) <= 1e-12
    with pytest.raises(RuntimeError, match="second time"):
        F.cross_entropy(outputs, y).backward()


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("depth", [32, 18])
def test_fngd_s_later_step_costs_what_one_of_sgd_costs(depth: int) -> None:
    """The paper's headline, 1.03 to 1.06 of SGD's, in counted FLOPs at the shape of CIFAR-10."""
    model = cb.problem("resnet", depth=depth, dataset="cifar10").model().train()
    batch = torch.randn(2, 3, 32, 32), torch.tensor([1, 7])
    optimizer = NaturalGradient(model, cb.probe("fngd", stage="shared"), 0.01)
    plain = counted(lambda: plainly(model, torch.optim.SGD(model.parameters(), 0.01), [batch]))
    first, _, _, later = (counted(lambda: naturally(optimizer, [batch])) for _ in range(4))  # two are verified as well
    assert first > 1.5 * plain
    assert plain <= later <= 1.10 * plain


def counted(run: Callable[[], None]) -> int:
    with FlopMeter() as meter:
        run()
    assert meter.uncounted == ()
    return meter.total


def test_a_sequence_s_tokens_share_the_mean_of_their_weights() -> None:
    """FNGD's later step. The judge: coefficients from dense scores of the first batch's tokens, one of them filling."""
    torch.manual_seed(0)
    model, probe = Tokens().double(), cb.probe("fngd", stage="shared")
    x, y = torch.randint(7, (5, 4)), torch.randint(3, (5, 4))
    y[1, 2] = -100
    scores = torch.stack([token_score(model, x, y, n, s) for n in range(5) for s in range(4) if y[n, s] >= 0])
    gram = scores @ scores.T
    damping = probe.alpha * gram.norm() / 19
    c = damping * torch.linalg.solve(damping * torch.eye(19).double() + gram / 19, torch.ones(19).double())
    weights = torch.stack([part.mean() for part in c.split([4, 3, 4, 4, 4])])
    optimizer = NaturalGradient(model, probe, 0.1, parameters="weights")
    for _ in range(2):
        expected = sum(
            weights[n] * token_score(model, x, y, n, s) / 19 for n in range(5) for s in range(4) if y[n, s] >= 0
        )
        before = flat(model.last)
        optimizer.zero_grad()
        F.cross_entropy(optimizer.forward(x, y).flatten(0, 1), y.flatten()).backward()
        optimizer.step()
    assert not optimizer._curvature.state.blocks
    assert oracles.relative((before - flat(model.last)) / 0.1, expected) <= 1e-10


def flat(layer: nn.Linear) -> Tensor:
    return torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach().flatten()


def token_score(model: nn.Module, x: Tensor, y: Tensor, n: int, s: int) -> Tensor:
    """The gradient of one token's loss by the last layer's ``[W | b]``."""
    loss = F.cross_entropy(model(x[n : n + 1])[:, s], y[n : n + 1, s])
    weight, bias = torch.autograd.grad(loss, [model.last.weight, model.last.bias])
    return torch.cat([weight, bias[:, None]], dim=1).flatten()


def test_fngd_solves_where_the_predicted_change_is_clipped() -> None:
    clipped = NaturalGradient(mlp(5, 6, 3).double(), cb.probe("fngd", stage="shared"), 0.1, kl_clip=1e-3)
    naturally(clipped, vectors(2))
    assert clipped._curvature.state.blocks


EMPIRICAL = {
    "kfac": {"fisher_type": "empirical"},
    "ekfac": {"fisher_type": "empirical"},
    "eva": {},
    "fngd": {},
    "lngd": {"fisher_type": "empirical"},
}


@pytest.mark.parametrize("name", EMPIRICAL)
def test_data_labels_share_the_backward_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with a loss that is no multiple of the likelihood's; the statistics are the same either way."""
    probe = cb.probe(name, **EMPIRICAL[name])
    shared, apart = pair(lambda: mlp(5, 6, 4, 3))
    optimizers = [NaturalGradient(model, probe, 0.0) for model in (shared, apart)]
    batch, *_ = vectors(1)
    naturally(optimizers[0], [batch])
    naturally(optimizers[1], [batch])
    passes: list[int] = []
    grad = torch.autograd.grad
    monkeypatch.setattr(Checks, "due", lambda *_: False)
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: passes.append(1) or grad(*args, **kwargs))
    for optimizer, smoothing in zip(optimizers, (0.0, 0.3), strict=True):
        optimizer.zero_grad()
        (2 * F.cross_entropy(optimizer.forward(*batch), batch[1], label_smoothing=smoothing)).backward()
        optimizer.step()
        assert len(passes) == (smoothing > 0)
    packed = [optimizer.state_dict()["curvature"]["kept"] for optimizer in optimizers]
    pairs = list(zip(*(tensors(state) for state in packed), strict=True))
    assert pairs and all(oracles.relative(a, b) <= 1e-12 or float(b.norm()) <= 1e-12 for a, b in pairs)


def tensors(packed: Any) -> list[Tensor]:
    """The tensors of floats of a stored state."""
    if isinstance(packed, Tensor):
        return [packed] if packed.is_floating_point() else []
    parts = packed.values() if isinstance(packed, dict) else packed if isinstance(packed, (list, tuple)) else []
    return [t for part in parts for t in tensors(part)]


@pytest.mark.parametrize(("stat_every", "refresh_every"), [(1, 1), (4, 1), (2, 4)])
def test_lngd_s_layer_rate_is_that_of_every_step_s_own_batch(stat_every: int, refresh_every: int) -> None:
    """Twice the step p would give half the rate: the step does not depend on p's length (mu = 0).

    Also where the factors are those of an earlier batch: Algorithm 1 has the rate outside of their intervals.
    """
    model = mlp(5, 6, 3).double()
    probe = cb.probe("lngd", layer_rate="corrected", mu=0.0)
    optimizer = NaturalGradient(model, probe, 0.1, stat_every=stat_every, refresh_every=refresh_every)
    for x, y in vectors(4):
        start = copy.deepcopy(model)
        naturally(optimizer, [(x, y)])
        terms = oracles.loss_terms(start, x, y, "cross_entropy")
        empirical = oracles.empirical_fisher(terms, "cross_entropy")
        gradient = oracles.mean_gradient(terms, "cross_entropy")
        before, after = (oracles.pack(m, dict(m.named_parameters())).detach() for m in (start, model))
        for part in oracles.layer_slices(start).values():
            step = (before - after)[part] / 0.1
            assert float(step @ gradient[part]) == pytest.approx(float(step @ empirical[part, part] @ step), rel=1e-10)


def test_lbfgs_fits_every_batch_anew() -> None:
    probe = cb.probe("lbfgs", updates=4)
    first, second = pair(lambda: mlp(5, 6, 3))
    batches = vectors(3)
    naturally(NaturalGradient(first, probe, 0.1), batches)
    for x, y in batches:
        instance = Instance(second.eval(), x, y)
        move(second, 0.1 * probe.precondition(probe.fit(instance), instance.gradient()))
    assert near(first, second, 1e-12)


# --- a batch in parts -------------------------------------------------------------------------------------


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 49, 3))


def accumulated(optimizer: NaturalGradient, batches: list[Batch], sizes: list[int]) -> None:
    """The loop of those whose batch does not fit into memory."""
    for batch in batches:
        optimizer.zero_grad()
        for x, y in zip(*(whole.split(sizes) for whole in batch), strict=True):
            share = len(y) / sum(sizes)
            (share * F.cross_entropy(optimizer.forward(x, y), y)).backward()
        optimizer.step()


TURNED = {"soap": {"max_precond_dim": 1}}  # else rounding decides the bases where the first gradients have no rank
JOINING = sorted(name for name in registry.probes() if cb.probe(name).combines_by is not None)


@pytest.mark.parametrize("sizes", [[2, 2, 2], [1, 5]], ids=str)
@pytest.mark.parametrize(
    ("model", "draw"), [(lambda: mlp(5, 6, 3), vectors), (convolutional, images)], ids=["mlp", "cnn"]
)
@pytest.mark.parametrize("name", JOINING)
def test_gradients_that_gather_make_the_step_of_the_joined_batch(
    name: str, model: Callable[[], nn.Module], draw: Callable[[int], list[Batch]], sizes: list[int]
) -> None:
    """Also where statistics are due at every other step, and averaged."""
    first, second = pair(model)
    batches = draw(4)
    settings: dict[str, Any] = {"momentum": 0.5, "stat_every": 2} | (
        {"ema": 0.5} if cb.probe(name).supports_ema else {}
    )
    probe, before = cb.probe(name, **TURNED.get(name, {})), values(second)
    accumulated(NaturalGradient(first, probe, 1e-3, **settings), batches, sizes)
    naturally(NaturalGradient(second, probe, 1e-3, **settings), batches)
    assert near(first, second, 1e-10)
    assert max(float((a - b).abs().max()) for a, b in zip(before, values(second), strict=True)) >= 1e-4


@pytest.mark.parametrize("name", sorted(set(registry.probes()) - set(JOINING)))
def test_a_probe_whose_states_do_not_join_refuses_to_gather(name: str) -> None:
    optimizer = NaturalGradient(mlp(5, 6, 3).double(), cb.probe(name, **({"rank": 4} if name == "eigen" else {})))
    with pytest.raises(ValueError, match=f"^{name} cannot combine the states of several batches"):
        accumulated(optimizer, vectors(1), [3, 3])


@pytest.mark.parametrize("name", ["kfac", "lngd"])
def test_a_batch_whose_gradient_was_thrown_away_is_no_part_of_the_next(name: str) -> None:
    """A step that was left out, as with an infinite loss: zero_grad ends it."""
    first, second = pair(lambda: mlp(5, 6, 3))
    lost, *batches = vectors(2)
    optimizer = NaturalGradient(first, cb.probe(name), 0.01)
    F.cross_entropy(optimizer.forward(*lost), lost[1]).backward()
    naturally(optimizer, batches)
    naturally(NaturalGradient(second, cb.probe(name), 0.01), batches)
    assert same(first, second)


def test_parts_of_a_batch_draw_labels_of_their_own() -> None:
    seeds: list[int] = []

    @dataclass(frozen=True)
    class Drawn(Spy):
        """Notes the seeds of its updates."""

        seed: int = 3
        combines_by = "mean"

        def update(self, state: Any, batch: Instance) -> int:
            seeds.append(self.seed)
            return 0

    accumulated(NaturalGradient(mlp(5, 6, 3).double(), Drawn([])), vectors(2), [2, 2, 2])
    assert len(set(seeds)) == 6


# --- statistics -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spy(Probe):
    """The identity, which logs the calls of its methods."""

    log: list[str] = field(default_factory=list)

    def update(self, state: Any, batch: Instance) -> int:
        self.log.append("update")
        return (state or 0) + 1

    def refresh(self, state: int) -> int:
        self.log.append(f"refresh {state}")
        return state

    def precondition(self, state: int, gradient: Tensor) -> Tensor:
        self.log.append(f"solve with {state}")
        return gradient

    def operator(self, state: Any) -> Identity:
        raise AssertionError("never asked")


@dataclass(frozen=True)
class After(Spy):
    """Takes in after the query."""

    rule = StepRule(update="after")

    def init(self, instance: Instance) -> int:
        return 0


def test_statistics_and_factorizations_keep_their_schedules() -> None:
    log: list[str] = []
    naturally(NaturalGradient(mlp(5, 6, 3).double(), Spy(log), stat_every=2, refresh_every=3), vectors(7))
    assert log == [
        *("update", "refresh 1", "solve with 1"),
        "solve with 1",
        *("update", "solve with 1"),
        *("refresh 2", "solve with 2"),
        *("update", "solve with 2"),
        "solve with 2",
        *("update", "refresh 4", "solve with 4"),
    ]


def test_an_update_after_the_query_serves_the_next_one() -> None:
    log: list[str] = []
    naturally(NaturalGradient(mlp(5, 6, 3).double(), After(log)), vectors(2))
    assert log == ["refresh 0", "solve with 0", "update", "refresh 1", "solve with 1", "update", "refresh 2"]


def test_a_method_without_factorization_uses_its_latest_statistics() -> None:
    first, second = pair(lambda: mlp(5, 6, 3))
    batches = vectors(4)
    naturally(NaturalGradient(first, cb.probe("adam"), 0.1, refresh_every=3), batches)
    naturally(NaturalGradient(second, cb.probe("adam"), 0.1), batches)
    assert same(first, second)


def test_a_running_average_of_kfac_is_that_of_its_factors() -> None:
    probe = cb.probe("kfac", damping=0.1)
    first, second = pair(lambda: mlp(5, 6, 3))
    batches = vectors(4)
    naturally(NaturalGradient(first, probe, 0.1, ema=0.8), batches)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for x, y in batches:
        parts = oracles.layer_factors(second, x, y, "cross_entropy", "type-2")
        for name, (group,) in parts.items():
            new = oracles.kfac_factors(group)
            old = factors.get(name, new)
            factors[name] = tuple(0.8 * o + 0.2 * n for o, n in zip(old, new, strict=True))
        gradient = oracles.mean_gradient(oracles.loss_terms(second, x, y, "cross_entropy"), "cross_entropy")
        dense = torch.block_diag(*[torch.kron(b.contiguous(), a.contiguous()) for b, a in factors.values()])
        move(second, 0.1 * torch.linalg.solve(dense + 0.1 * torch.eye(len(dense)).double(), gradient))
    assert near(first, second, 1e-11)


def count_passes(model: nn.Module) -> list[int]:
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    return passes


@pytest.mark.parametrize("name", ["kfac", "ginger", "lngd", "full", "adam"])
def test_statistics_share_the_training_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the modes differ there is a second pass, except for a method that needs the training gradient alone."""
    monkeypatch.setattr(Checks, "due", lambda *_: False)
    for kind, expected in (("mlp", 1), ("batchnorm", 1 if name == "adam" else 2)):
        build, data = MODELS[kind]
        model = build().double().train()
        optimizer = NaturalGradient(model, cb.probe(name), 1e-4)
        first, *rest = data(4)
        naturally(optimizer, [first])  # verification has passes of its own
        passes = count_passes(model)
        naturally(optimizer, rest)
        assert len(passes) == expected * len(rest), kind


def test_dropout_counts_though_it_shows_only_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind weights that begin at zero the outputs of the first batch are the same in both modes."""
    monkeypatch.setattr(Checks, "due", lambda *_: False)
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(), nn.Linear(8, 3)).double()
    nn.init.zeros_(model[2].weight)
    optimizer = NaturalGradient(model, cb.probe("kfac"), 0.1)
    first, *rest = vectors(3)
    naturally(optimizer, [first])
    passes = count_passes(model)
    naturally(optimizer, rest)
    assert len(passes) == 2 * len(rest)


def test_evaluation_through_forward_is_the_model_s() -> None:
    model = mlp(5, 6, 3).double()
    optimizer = NaturalGradient(model, cb.probe("kfac"))
    ((x, y),) = vectors(1)
    with torch.no_grad():
        assert torch.equal(optimizer.forward(x, y), model(x))
    optimizer.close()
    with pytest.raises(ValueError, match=r"optimizer\.forward"):
        plainly(model, optimizer, [(x, y)])


@pytest.mark.parametrize("name", sorted(registry.probes()))
def test_the_shared_pass_gives_what_a_pass_of_its_own_gives(name: str) -> None:
    """Dropout with probability 0 makes the optimizer think that the modes differ."""
    first = mlp(5, 6, 4, 3).double()
    second = nn.Sequential(*copy.deepcopy(first), nn.Dropout(0.0))
    batches = vectors(3, samples=8)
    for model in (first, second):
        naturally(NaturalGradient(model, cb.probe(name), 1e-3, 0.9), batches)
    assert near(first, second, 1e-10)
    assert name in ("identity", "sgdm") or not near(first, mlp(5, 6, 4, 3).double(), 1e-10)


def test_batch_norm_is_in_training_mode_for_the_gradient_and_not_for_the_statistics() -> None:
    model = nasty_cnn().double().train()
    optimizer = NaturalGradient(model, cb.probe("kfac"), 0.01)
    ((x, y),) = images(1)
    optimizer.zero_grad()
    F.cross_entropy(optimizer.forward(x, y), y).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    other = copy.deepcopy(model)  # running means have moved, parameters have not
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    instance = Instance(other.eval(), x, y)
    probe = cb.probe("kfac")
    step = instance.unpack(probe.precondition(probe.refresh(probe.fit(instance)), instance.pack(gradients)))
    for name, parameter in model.named_parameters():
        expected = step.get(name, gradients[name])
        torch.testing.assert_close(before[name] - parameter.detach(), 0.01 * expected, rtol=1e-10, atol=1e-13)
    assert all(module.training for module in model.modules())


def test_sampled_labels_are_drawn_anew_at_every_step() -> None:
    first, second = pair(lambda: mlp(5, 6, 3))
    ((x, y),) = vectors(1)
    first_state, second_state = [], []
    for model, kept, stat_every in ((first, first_state, 1), (second, second_state, 5)):
        optimizer = NaturalGradient(model, cb.probe("kfac", fisher_type="mc"), lr=0.0, stat_every=stat_every)
        for _ in range(2):
            naturally(optimizer, [(x, y)])
            kept.append(optimizer.state_dict()["curvature"]["kept"]["fields"]["factors"][0]["fields"]["left"])
    assert not torch.equal(*first_state)
    assert torch.equal(*second_state)
    assert torch.equal(first_state[0], second_state[0])


class Tokens(nn.Module):
    """Tokens (N, T) to classes of tokens, with an embedding and a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm, self.last = nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.norm(self.embedding(tokens)))


def test_uncovered_parameters_take_the_plain_gradient() -> None:
    first, second = pair(Tokens)
    x, y = torch.randint(7, (5, 4)), torch.randint(3, (5, 4))
    optimizer = NaturalGradient(first, cb.probe("kfac"), 0.1, 0.9, 0.2, parameters="weights")
    buffers = {name: torch.zeros_like(p) for name, p in second.named_parameters()}
    for _ in range(3):
        for name, p in second.named_parameters():
            p.data.copy_(first.get_parameter(name))
        optimizer.zero_grad()
        F.cross_entropy(optimizer.forward(x, y).flatten(0, 1), y.flatten()).backward()
        optimizer.step()
        loss = F.cross_entropy(second(x).flatten(0, 1), y.flatten())
        for name, gradient in zip(buffers, torch.autograd.grad(loss, list(second.parameters())), strict=True):
            buffers[name] = 0.9 * buffers[name] + gradient
            expected = (1 - 0.1 * 0.2) * second.get_parameter(name) - 0.1 * buffers[name]
            moved = float((expected - first.get_parameter(name)).detach().abs().max()) <= 1e-14
            assert moved is not name.startswith("last"), name


def test_sequences_of_another_length_are_seen_with_their_own_positions() -> None:
    """THOR divides by the number of positions."""
    model = Tokens().double()
    probe = cb.probe("thor", fisher_type="empirical")
    optimizer = NaturalGradient(model, probe, 0.1)
    for length in (4, 2):
        x, y = torch.randint(7, (5, length)), torch.randint(3, (5, length))
        other = copy.deepcopy(model).eval()
        optimizer.zero_grad()
        F.cross_entropy(optimizer.forward(x, y).flatten(0, 1), y.flatten()).backward()
        optimizer.step()
        instance = Instance(other, x, y)
        step = probe.precondition(probe.refresh(probe.fit(instance)), instance.gradient())
        moved = instance.pack(dict(other.named_parameters())) - instance.pack(dict(model.named_parameters()))
        torch.testing.assert_close(moved.detach(), 0.1 * step, rtol=1e-9, atol=1e-12)


# --- ways to call it --------------------------------------------------------------------------------------


def test_two_halves_accumulate_to_the_joined_batch() -> None:
    first, second = pair(lambda: mlp(5, 6, 3))
    (x, y), *_ = vectors(1, samples=8)
    optimizers = [NaturalGradient(model, cb.probe("identity"), 0.1, 0.9) for model in (first, second)]
    for _ in range(3):
        optimizers[0].zero_grad()
        for half in (slice(0, 4), slice(4, 8)):
            (F.cross_entropy(optimizers[0].forward(x[half], y[half]), y[half]) / 2).backward()
        optimizers[0].step()
        naturally(optimizers[1], [(x, y)])
    assert near(first, second, 1e-14)


def test_a_closure_makes_the_same_step() -> None:
    first, second = pair(lambda: mlp(5, 6, 3))
    batches = vectors(3)
    naturally(NaturalGradient(first, cb.probe("kfac"), 0.1), batches)
    optimizer = NaturalGradient(second, cb.probe("kfac"), 0.1)
    losses = []
    for x, y in batches:

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(optimizer.forward(x, y), y)
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    assert same(first, second)
    assert all(loss > 0 for loss in losses)


def test_the_loss_may_be_another_and_the_model_take_several_arguments() -> None:
    """Label smoothing and a penalty, with the gradient that autograd gives without any optimizer."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(x) + shift))

    model = Sum().double()
    x, shift, y = torch.randn(6, 5).double(), torch.randn(6, 4).double(), torch.randint(3, (6,))

    def loss(outputs: Tensor) -> Tensor:
        return F.cross_entropy(outputs, y, label_smoothing=0.2) + model.last.weight.square().sum()

    expected = torch.autograd.grad(loss(model(x, shift)), list(model.parameters()))
    for inputs in ((x, shift), {"x": x, "shift": shift}):
        optimizer = NaturalGradient(model, cb.probe("kfac"))
        optimizer.zero_grad()
        loss(optimizer.forward(inputs, y)).backward()
        assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), expected, strict=True))


def test_frozen_and_unused_parameters_stay() -> None:
    model = mlp(5, 6, 4, 3).double()
    model[0].requires_grad_(False)
    before = values(model)
    optimizer = NaturalGradient(model, cb.probe("kfac"), params=model[2].parameters())
    naturally(optimizer, vectors(2))
    moved = [not torch.equal(a, b) for a, b in zip(before, values(model), strict=True)]
    assert moved == [False, False, True, True, False, False]


def test_the_graph_of_the_batch_is_let_go() -> None:
    import gc
    import weakref

    model = mlp(5, 6, 3).double()
    optimizer = NaturalGradient(model, cb.probe("identity"))
    ((x, y),) = vectors(1)
    outputs = optimizer.forward(x, y)
    tape = weakref.ref(optimizer._batch[2])
    F.cross_entropy(outputs, y).backward()
    assert tape() is not None
    optimizer.step()
    del outputs
    gc.collect()
    assert tape() is None


# --- storing ----------------------------------------------------------------------------------------------


def through_a_file(content: Any) -> Any:
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


OPTIONS: dict[str, dict[str, Any]] = {
    "kfac": {"ema": 0.9, "stat_every": 2, "refresh_every": 3},
    "full": {"refresh_every": 2},
    "lngd": {"kl_clip": 1e-3},
}


@pytest.mark.parametrize("name", sorted(registry.probes()))
def test_a_stored_state_continues_to_the_same_bits(name: str) -> None:
    model = mlp(5, 6, 4, 3).double()
    batches = vectors(7, samples=8)

    def training(model: nn.Module) -> tuple[NaturalGradient, torch.optim.lr_scheduler.LRScheduler]:
        optimizer = NaturalGradient(model, cb.probe(name), 1e-3, 0.9, 0.01, **OPTIONS.get(name, {}))
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)

    def train(parts: Any, batches: list[Batch]) -> None:
        for batch in batches:
            naturally(parts[0], [batch])
            parts[1].step()

    uninterrupted = training(model)
    train(uninterrupted, batches[:4])
    stored = through_a_file([model.state_dict(), uninterrupted[0].state_dict(), uninterrupted[1].state_dict()])
    other = mlp(5, 6, 4, 3).double()
    continued = training(other)
    for part, state in zip((other, *continued), stored, strict=True):
        part.load_state_dict(state)
    train(uninterrupted, batches[4:])
    train(continued, batches[4:])
    assert same(model, other)


def test_states_of_others_are_refused() -> None:
    model = mlp(5, 6, 3).double()
    optimizer = NaturalGradient(model, cb.probe("kfac"))
    naturally(optimizer, vectors(1))
    state = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"that of kfac, this optimizer's probe is kfac\[damping=0.5\]"):
        NaturalGradient(model, cb.probe("kfac", damping=0.5)).load_state_dict(state)
    with pytest.raises(ValueError, match="version 99"):
        optimizer.load_state_dict({**state, "curvature": {**state["curvature"], "version": 99}})
    with pytest.raises(ValueError, match="no state of a NaturalGradient"):
        optimizer.load_state_dict(torch.optim.SGD(model.parameters(), 0.1).state_dict())


# --- every probe ------------------------------------------------------------------------------------------

OWN_RATES = {"adam": 0.01, "adamw": 0.01, "identity": 0.3, "sgdm": 0.1, "fngd": 3.0, "shampoo": 0.03, "muon": 0.03}
OWN_RATES |= {"adahessian": 0.03, "sophia": 0.01, "soap": 0.01, "klshampoo": 0.03}
# L-BFGS is undamped: where curvature is near zero its steps know no bound of their own. M-FAC counts the whole of its
# window from the start, so that thirty steps with the others' bound are short.
BOUNDS = {"lbfgs": 1e-3, "mfac": 1e-1}


@pytest.mark.parametrize("name", sorted(registry.probes()))
def test_every_probe_trains(name: str) -> None:
    problem = cb.problem("mlp", depth=2, activation="tanh")
    data = problem.data(None)
    model = problem.model()
    damped = {"damping": 0.1} if "damping" in cb.probe(name).hyperparameters else {}
    settings = {"lr": OWN_RATES[name]} if name in OWN_RATES else {"lr": 0.3, "kl_clip": BOUNDS.get(name, 1e-2)}
    optimizer = NaturalGradient(model, cb.probe(name, **damped), **settings)
    losses = []
    for _ in range(30):
        rows = torch.randint(len(data.train_inputs), (64,))
        x, y = data.train_inputs[rows], data.train_targets[rows]
        optimizer.zero_grad()
        loss = F.cross_entropy(optimizer.forward(x, y), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(losses) <= 2 * losses[0]
    assert sum(losses[-3:]) / 3 <= 0.8 * losses[0], losses


# --- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"lr": -1.0}, "lr must be finite and not negative, got -1.0"),
        ({"lr": float("nan")}, "lr must be finite"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"weight_decay": -0.1}, "weight_decay must be finite"),
        ({"stat_every": 0}, "stat_every must be at least 1, got 0"),
        ({"refresh_every": -1}, "refresh_every must be at least 1"),
        ({"kl_clip": 0.0}, "kl_clip must be finite and above zero"),
        ({"ema": 1.0}, r"ema must lie in \[0, 1\)"),
        ({"params": [torch.zeros(3, requires_grad=True)]}, "no parameter of the model"),
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        NaturalGradient(mlp(5, 6, 3), cb.probe("kfac"), **arguments)


def test_an_average_needs_statistics() -> None:
    with pytest.raises(ValueError, match="full has no statistics that ema could average"):
        NaturalGradient(mlp(5, 6, 3), cb.probe("full"), ema=0.9)


def test_a_step_without_its_batch_is_refused() -> None:
    model = mlp(5, 6, 3).double()
    optimizer = NaturalGradient(model, cb.probe("kfac"), stat_every=2)
    optimizer.close()
    batches = vectors(3)
    with pytest.raises(ValueError, match=r"optimizer\.forward\(inputs, targets\)"):
        plainly(model, optimizer, batches[:1])
    naturally(optimizer, batches[:1])
    plainly(model, optimizer, batches[1:2])  # no statistics are due
    with pytest.raises(ValueError, match=r"optimizer\.forward\(inputs, targets\)"):
        plainly(model, optimizer, batches[2:])


def test_labels_out_of_range_are_named() -> None:
    optimizer = NaturalGradient(mlp(5, 6, 3).double(), cb.probe("kfac"))
    batches = vectors(2)
    naturally(optimizer, batches[:1])
    with pytest.raises(ValueError, match=r"targets must lie in 0\.\.2, got 3\.\.3"):
        optimizer.forward(batches[1][0], torch.full((6,), 3))


def test_a_probe_that_does_not_cover_the_model_says_so() -> None:
    optimizer = NaturalGradient(mlp(5, 6, 3).double(), cb.probe("ginger", rank=1000))
    (x, y), *_ = vectors(1)
    with pytest.raises(Unsupported, match="rank 1000 is more than"):
        optimizer.forward(x, y)


DRAWN = ["ginger", "qng", "shampoo[statistic=bg]", "kfac[fisher_type=mc]", "lngd[fisher_type=mc]"]


@pytest.mark.parametrize("probe", ["kfac", *DRAWN])
def test_divergence_is_named(probe: str) -> None:
    """Methods that draw labels meet outputs from which none can be drawn."""
    model = mlp(5, 6, 3, activation=nn.ReLU).double()
    optimizer = NaturalGradient(model, registry.parse_probe(probe), lr=1e200)
    with pytest.raises(Diverged, match="the gradient holds NaN"):
        naturally(optimizer, vectors(4))


@pytest.mark.parametrize("probe", ["shampoo", "fngd", "cwngd"])
def test_a_gradient_whose_square_overflows_has_diverged(probe: str) -> None:
    """It is finite itself, but no statistics of it are."""
    model = mlp(5, 6, 3, activation=nn.ReLU).double()
    with torch.no_grad():
        model[-1].weight.mul_(1e160)
    with pytest.raises(Diverged, match="the gradient's square is infinite"):
        naturally(NaturalGradient(model, cb.probe(probe)), vectors(1))
