"""An instance leaves the user's model as it was found, and refuses with one line what cannot be measured."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
from cases import CASES, Case, MeanPool, Truth, instance_of, mlp, truth, used_batchnorm, weights_of, whole_of
from torch import Tensor, nn

import curvbench as cb


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a measurement must not change; tensors bit for bit."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    return {
        "modules": [(name, id(module), type(module)) for name, module in model.named_modules()],
        "hooks": {n: [list(getattr(m, h)) for h in hooks] for n, m in model.named_modules()},
        "training": {name: module.training for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "parameters": {n: (id(p), p.requires_grad, p._version, p.dtype) for n, p in model.named_parameters()},
        "gradients": {n: None if p.grad is None else p.grad.tolist() for n, p in model.named_parameters()},
        "state": {n: t.tolist() for n, t in model.state_dict().items()},
    }


def measure(instance: cb.Instance) -> None:
    """Everything that touches the model."""
    for fisher_type in ("type-2", "mc", "empirical"):
        cb.exact_fisher(instance, fisher_type=fisher_type).to_dense()
    cb.errors(cb.fit(cb.probe("kfac"), instance), cb.exact_fisher(instance))
    cb.direction_errors(cb.probe("full"), instance)
    instance.gradient()


def test_model_is_left_as_it_was_found(case: Case) -> None:
    model, inputs, targets = case.build()
    parameters = list(model.parameters())
    for parameter in parameters[::2]:
        parameter.grad = torch.ones_like(parameter)
    hook = model.register_forward_hook(lambda *_: None)
    before, kept = fingerprint(model), (inputs.clone(), targets.clone())
    measure(cb.Instance(model, inputs, targets, loss=case.loss))
    assert fingerprint(model) == before
    assert torch.equal(inputs, kept[0]) and torch.equal(targets, kept[1])
    hook.remove()


def test_gradient_mode_is_left_as_it_was_found() -> None:
    model, inputs, targets = CASES["nasty_cnn"].build()
    with torch.no_grad():
        instance = weights_of(model, inputs, targets)
        fisher = cb.exact_fisher(instance).to_dense()
        assert not torch.is_grad_enabled()
    assert oracles.relative(fisher, truth("nasty_cnn").fisher()) <= 1e-10
    assert torch.is_grad_enabled()


def test_a_model_in_training_mode_without_batchnorm_stays_in_it_and_drops_nothing() -> None:
    model, inputs, targets = CASES["mlp_tanh"].build()
    model = nn.Sequential(*model[:2], nn.Dropout(0.9), *model[2:]).train()
    before = fingerprint(model)
    fisher = cb.exact_fisher(cb.Instance(model, inputs, targets)).to_dense()
    assert fingerprint(model) == before
    assert oracles.relative(fisher, truth("mlp_tanh").fisher()) <= 1e-10


def test_a_failed_instance_leaves_the_model_as_it_was_found() -> None:
    model, inputs, targets = CASES["mlp_tanh"].build()
    before = fingerprint(model)
    with pytest.raises(ValueError):
        cb.Instance(model, inputs, targets + 3)
    assert fingerprint(model) == before


# --- refusals ----------------------------------------------------------------------------------------------


def with_nan(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(model.parameters())[0, 0] = float("nan")
    return model


SEED = torch.Generator().manual_seed(0)
IMAGES, VECTORS = torch.randn(4, 2, 6, 6, generator=SEED), torch.randn(4, 5, generator=SEED)
LABELS = torch.tensor([0, 1, 2, 0])


def images(norm: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3), norm(), nn.Flatten(), nn.Linear(48, 3))


REFUSED: dict[str, tuple[Callable[[], nn.Module], Tensor, Tensor, str]] = {
    "batchnorm in training mode": (lambda: images(lambda: used_batchnorm(3)).train(), IMAGES, LABELS, "cross_entropy"),
    "batchnorm1d in training mode": (
        lambda: nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)).train(),
        VECTORS,
        LABELS,
        "cross_entropy",
    ),
    "no parameter": (nn.Identity, VECTORS, LABELS, "cross_entropy"),
    "unknown loss": (lambda: mlp(5, 3), VECTORS, LABELS, "hinge"),
    "nan in the inputs": (lambda: mlp(5, 3), VECTORS.clone().fill_(float("nan")), LABELS, "cross_entropy"),
    "infinity in the inputs": (lambda: mlp(5, 3), VECTORS.clone().fill_(float("inf")), LABELS, "cross_entropy"),
    "nan in the targets": (lambda: mlp(5, 3), VECTORS, torch.full((4, 3), float("nan")), "gaussian"),
    "nan in the weights": (lambda: with_nan(mlp(5, 4, 3)), VECTORS, LABELS, "cross_entropy"),
    "one class": (lambda: mlp(5, 1), VECTORS, torch.zeros(4, dtype=torch.int64), "cross_entropy"),
    "target out of range": (lambda: mlp(5, 3), VECTORS, LABELS + 1, "cross_entropy"),
    "negative target": (lambda: mlp(5, 3), VECTORS, LABELS - 1, "cross_entropy"),
    "every target ignored": (lambda: mlp(5, 3), VECTORS, torch.full((4,), -100), "cross_entropy"),
    "more inputs than targets": (lambda: mlp(5, 3), VECTORS, LABELS[:3], "cross_entropy"),
    "more targets than inputs": (lambda: mlp(5, 3), VECTORS[:3], LABELS, "cross_entropy"),
    "no sample": (lambda: mlp(5, 3), VECTORS[:0], LABELS[:0], "cross_entropy"),
    "float labels": (lambda: mlp(5, 3), VECTORS, LABELS.float(), "cross_entropy"),
    "one-hot labels": (lambda: mlp(5, 3), VECTORS, torch.eye(3)[LABELS], "cross_entropy"),
    "integer regression targets": (lambda: mlp(5, 3), VECTORS, torch.eye(3, dtype=torch.int64)[LABELS], "gaussian"),
    "flat regression targets": (lambda: mlp(5, 3), VECTORS, torch.randn(4), "gaussian"),
    "regression targets that would broadcast": (lambda: mlp(5, 3), VECTORS, torch.randn(4, 1), "gaussian"),
    "labels for regression": (lambda: mlp(5, 3), VECTORS, LABELS, "gaussian"),
    "tokens with one label per sample": (lambda: mlp(5, 3), torch.randn(4, 2, 5), LABELS, "cross_entropy"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str) -> None:
    make, inputs, targets, loss = REFUSED[name]
    torch.manual_seed(0)
    model = make()
    if name not in ("batchnorm in training mode", "batchnorm1d in training mode"):
        model.eval()
    with pytest.raises(ValueError) as caught:
        cb.Instance(model, inputs, targets, loss=loss)
    assert str(caught.value).strip() and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("batchnorm in training mode", "1"),
        ("unknown loss", "hinge"),
        ("no parameter", "no trainable parameter"),
    ],
)
def test_a_refusal_names_the_culprit(name: str, words: str) -> None:
    make, inputs, targets, loss = REFUSED[name]
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=words):
        cb.Instance(make(), inputs, targets, loss=loss)


def test_a_refused_model_in_training_mode_stays_in_it() -> None:
    model = images(lambda: used_batchnorm(3)).train()
    before = fingerprint(model)
    with pytest.raises(ValueError):
        cb.Instance(model, IMAGES, LABELS)
    assert fingerprint(model) == before


def weight_in_place(model: nn.Module) -> None:
    with torch.no_grad():
        model[0].weight.add_(1.0)


def weight_replaced(model: nn.Module) -> None:
    model[0].weight = nn.Parameter(model[0].weight.detach() * 2)


def statistics(model: nn.Module) -> None:
    model[1].running_mean.add_(1.0)


@pytest.mark.parametrize("change", [weight_in_place, weight_replaced, statistics])
def test_a_model_that_was_changed_is_refused_when_used(change: Callable[[nn.Module], None]) -> None:
    model, inputs, targets = CASES["nasty_cnn"].build()
    instance = cb.Instance(model, inputs, targets)
    change(model)
    for use in (cb.exact_fisher, lambda i: cb.fit(cb.probe("kfac"), i), lambda i: i.gradient()):
        with pytest.raises(ValueError) as caught:
            use(instance)
        assert "\n" not in str(caught.value)


def test_a_change_of_mode_afterwards_is_refused_or_without_effect() -> None:
    model, inputs, targets = CASES["nasty_cnn"].build()
    instance = weights_of(model, inputs, targets)
    model.train()
    before = fingerprint(model)
    try:
        matrix = cb.exact_fisher(instance).to_dense()
    except ValueError as refusal:
        assert "\n" not in str(refusal)
    else:
        assert oracles.relative(matrix, truth("nasty_cnn").fisher()) <= 1e-10
    assert fingerprint(model) == before


# --- what an instance knows --------------------------------------------------------------------------------


def test_gradient_is_that_of_the_mean_loss(case: Case, judge: Truth, instance: cb.Instance) -> None:
    gradient = instance.gradient()
    assert gradient.shape == (judge.size,) and gradient.dtype == torch.float64
    assert float((gradient - judge.gradient).norm()) <= 1e-12 * float(judge.gradient.norm())


def test_layers_in_order(case: Case, judge: Truth, instance: cb.Instance) -> None:
    expected = oracles.layer_slices(judge.model)
    assert [layer.name for layer in instance.layers] == list(expected)
    assert [layer.slice for layer in instance.layers] == list(expected.values())
    for layer, module in zip(instance.layers, oracles.covered_layers(judge.model).values(), strict=True):
        groups = getattr(module, "groups", 1)
        width = module.weight[0].numel() + (module.bias is not None)
        assert layer.shape == (groups, len(module.weight) // groups, width)


def covered_parameters(model: nn.Module) -> dict[str, Tensor]:
    names = [f"{name}.{kind}" for name in oracles.covered_layers(model) for kind in ("weight", "bias")]
    return {n: p.detach() for n, p in model.named_parameters() if n in names}


def test_pack_and_unpack(case: Case, judge: Truth, instance: cb.Instance) -> None:
    named = covered_parameters(judge.model)
    packed = instance.pack(named)
    assert torch.equal(packed, oracles.pack(judge.model, named))
    unpacked = instance.unpack(packed)
    assert unpacked.keys() == named.keys()
    assert all(torch.equal(unpacked[name], tensor) for name, tensor in named.items())
    vector = torch.arange(judge.size, dtype=torch.float64)
    assert torch.equal(instance.pack(instance.unpack(vector)), vector)


def test_pack_takes_all_parameters_of_a_model() -> None:
    """So that ``dict(model.named_parameters())`` can be handed over as it is."""
    model, *_ = CASES["nasty_cnn"].build()
    everything = {name: p.detach() for name, p in model.named_parameters()}
    assert torch.equal(instance_of("nasty_cnn").pack(everything), oracles.pack(model, everything))


def test_pack_and_unpack_refuse_what_does_not_fit() -> None:
    instance = instance_of("mlp_tanh")
    named = covered_parameters(truth("mlp_tanh").model)
    with pytest.raises(ValueError, match=r"0\.bias"):
        instance.pack({name: tensor for name, tensor in named.items() if name != "0.bias"})
    with pytest.raises(ValueError, match=r"0\.weight"):
        instance.pack(named | {"0.weight": named["0.weight"].T})
    with pytest.raises(ValueError):
        instance.unpack(torch.zeros(5, dtype=torch.float64))


def test_the_order_of_all_parameters() -> None:
    """Weights with their biases, then embeddings with a row per feature, then scales and shifts side by side."""
    instance, (model, *_) = whole_of("embedding"), CASES["embedding"].build()
    named = {name: p.detach() for name, p in model.named_parameters()}
    norm = torch.stack([model.norm.weight, model.norm.bias], 1).detach()
    expected = [oracles.pack(model, named), named["first.weight"].T.flatten(), norm.flatten()]
    assert [layer.name for layer in instance.layers] == ["inner", "last", "first", "norm"]
    assert [layer.kind for layer in instance.layers] == ["linear", "linear", "lookup", "vector"]
    assert [layer.shape for layer in instance.layers] == [(1, 5, 5), (1, 3, 5), (1, 4, 7), (1, 5, 2)]
    assert torch.equal(instance.pack(named), torch.cat(expected))
    unpacked = instance.unpack(torch.cat(expected))
    assert unpacked.keys() == named.keys()
    assert all(torch.equal(unpacked[name], tensor) for name, tensor in named.items())


def test_a_weight_may_lie_in_memory_in_any_order() -> None:
    """Convolutions in channels_last, and a Linear whose weight is a transposed tensor."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(27, 3)).double()
    other = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    other[3].weight = nn.Parameter(plain[3].weight.detach().T.contiguous().T)
    batch = torch.randn(4, 2, 4, 4).double(), LABELS
    instances = [cb.Instance(model, *batch) for model in (plain, other)]
    kinds = [[(layer.name, layer.kind, layer.shape) for layer in instance.layers] for instance in instances]
    assert kinds[0] == kinds[1] and not other[0].weight.is_contiguous()
    fishers = [cb.exact_fisher(instance).to_dense() for instance in instances]
    assert oracles.relative(fishers[1], fishers[0]) <= 1e-14
    optimizer = cb.NaturalGradient(other, cb.probe("full"), lr=0.1)
    gradient, fisher = instances[0].gradient(), cb.exact_fisher(instances[0])
    before = instances[0].pack(dict(other.named_parameters())).detach()
    nn.functional.cross_entropy(optimizer.forward(*batch), LABELS).backward()
    optimizer.step()
    step = before - instances[0].pack(dict(other.named_parameters())).detach()
    assert oracles.relative(step, 0.1 * fisher.natural_gradient(gradient, optimizer.probe.damping)) <= 1e-10


def test_coverage(case: Case, judge: Truth, instance: cb.Instance) -> None:
    total = sum(p.numel() for p in judge.model.parameters())
    assert instance.coverage == pytest.approx(judge.size / total)


def test_uncovered_parameters_only_lower_the_coverage() -> None:
    assert instance_of("mlp_tanh").coverage == 1.0
    assert 0.5 < instance_of("nasty_cnn").coverage < 1.0


def test_frozen_layers_are_not_trained_and_not_compared() -> None:
    """A layer without a trainable parameter has no direction to compare; it still passes gradients on."""
    model, inputs, targets = CASES["mlp_tanh"].build()
    model[2].requires_grad_(False)
    instance = cb.Instance(model, inputs, targets)
    slices = oracles.layer_slices(truth("mlp_tanh").model)
    kept = torch.cat([torch.arange(s.start, s.stop) for name, s in slices.items() if name != "2"])
    expected = truth("mlp_tanh").fisher()[kept][:, kept]
    assert [layer.name for layer in instance.layers] == ["0", "4"]
    assert oracles.relative(cb.exact_fisher(instance).to_dense(), expected) <= 1e-10
    assert not any(p.requires_grad for p in model[2].parameters())


def test_a_frozen_bias_is_left_out_of_its_layer() -> None:
    model, inputs, targets = CASES["mlp_tanh"].build()
    model[2].bias.requires_grad_(False)
    instance = cb.Instance(model, inputs, targets)
    part = oracles.layer_slices(truth("mlp_tanh").model)["2"]
    biases = set(range(part.start + 6, part.stop, 7))
    kept = torch.tensor([i for i in range(truth("mlp_tanh").size) if i not in biases])
    expected = truth("mlp_tanh").fisher()[kept][:, kept]
    assert oracles.relative(cb.exact_fisher(instance).to_dense(), expected) <= 1e-10


def test_data_changed_in_place_gives_no_mixture() -> None:
    """Refused, or the Fisher of the data as it was, or of the data as it is."""
    model, inputs, targets = CASES["mlp_tanh"].build()
    instance = cb.Instance(model, inputs, targets)
    instance.gradient()
    inputs.mul_(3.0)
    new = oracles.type2_fisher(oracles.loss_terms(model, inputs, targets, "cross_entropy"), "cross_entropy")
    try:
        matrix = cb.exact_fisher(instance).to_dense()
    except ValueError as refusal:
        assert "\n" not in str(refusal)
    else:
        assert min(oracles.relative(matrix, expected) for expected in (new, truth("mlp_tanh").fisher())) <= 1e-10


class Idle(nn.Module):
    """Has a layer that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.idle, self.last = nn.Linear(5, 4), nn.Linear(2, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


def test_a_layer_that_is_never_called_is_left_out() -> None:
    """It has no curvature, and does not shift its neighbours in the parameter vector."""
    model, inputs = Idle().double(), VECTORS.double()
    instance = cb.Instance(model, inputs, LABELS)
    assert [layer.name for layer in instance.layers] == ["first", "last"]
    assert instance.left_out == dict.fromkeys(["idle.bias", "idle.weight"], "not used on this batch")
    assert instance.coverage == pytest.approx(39 / 45)
    kept = torch.cat([torch.arange(24), torch.arange(30, 45)])
    expected = oracles.type2_fisher(oracles.loss_terms(model, inputs, LABELS, "cross_entropy"), "cross_entropy")
    assert oracles.relative(cb.exact_fisher(instance).to_dense(), expected[kept][:, kept]) <= 1e-10


def test_which_parameters_are_covered() -> None:
    model, inputs, targets = CASES["embedding"].build()
    weights = weights_of(model, inputs, targets)
    reason = "no weight of a linear layer or a convolution"
    assert weights.left_out == dict.fromkeys(["first.weight", "norm.bias", "norm.weight"], reason)
    assert not cb.Instance(model, inputs, targets).left_out
    with pytest.raises(ValueError, match="must be 'all' or 'weights', got 'biases'"):
        cb.Instance(model, inputs, targets, parameters="biases")
    with pytest.raises(ValueError, match=f"no trainable parameter is left to measure: 'bias': {reason}"):
        weights_of(nn.LayerNorm(5), VECTORS, LABELS)


def test_one_sample_and_one_loss_term() -> None:
    measure(instance_of("one_sample"))
    measure(instance_of("one_sample_cnn"))


def test_a_pooled_linear_layer_sees_positions() -> None:
    model = nn.Sequential(nn.Linear(3, 2), MeanPool(), nn.Linear(2, 3)).double()
    inputs, targets = torch.randn(4, 6, 3).double(), LABELS
    instance = cb.Instance(model, inputs, targets)
    expected = oracles.type2_fisher(oracles.loss_terms(model, inputs, targets, "cross_entropy"), "cross_entropy")
    assert oracles.relative(cb.exact_fisher(instance).to_dense(), expected) <= 1e-10


def test_inputs_of_another_dtype_are_one_line() -> None:
    with pytest.raises(ValueError, match="cannot be run on these inputs") as caught:
        cb.Instance(mlp(5, 3).float(), VECTORS.double(), LABELS)
    assert "\n" not in str(caught.value)


def test_lazy_and_inference_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="no shape yet"):
        cb.Instance(nn.LazyLinear(3), VECTORS, LABELS)
    with torch.inference_mode():
        model = nn.Linear(5, 3)
    with pytest.raises(ValueError, match="inference_mode"):
        cb.Instance(model, VECTORS, LABELS)
    instance = cb.Instance(nn.Linear(5, 3), VECTORS, LABELS)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        instance.gradient()


class Single(nn.Module):
    """Makes a float32 matrix on its way: it cannot run in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x) @ torch.eye(4, dtype=torch.float32))


def test_a_model_that_cannot_run_in_float64_is_told_the_way_out() -> None:
    instance = cb.Instance(Single(), VECTORS, LABELS)
    with pytest.raises(ValueError, match="precision='mixed' or precision='native'"):
        cb.exact_fisher(instance, precision="float64")
    assert cb.exact_fisher(instance, precision="native").trace() > 0


class Steps(nn.Module):
    """Time first: inputs (T, N, D) and a weight per step, outputs (N, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.LSTM(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return self.last((self.first(x)[0] * weights[:, None, None]).sum(0))


@pytest.mark.parametrize("steps", [5, 4], ids=["other length", "as many steps as samples"])
def test_the_dimension_of_the_samples_may_be_named(steps: int) -> None:
    torch.manual_seed(0)
    model, x, weights = Steps().double(), torch.randn(steps, 4, 3).double(), torch.rand(steps).double()
    y = torch.tensor([0, 1, 2, 0])
    named = cb.Instance(model, {"x": x, "weights": weights}, y, sample_inputs={"x": 1})
    numbered = cb.Instance(model, (x, weights), y, sample_inputs={0: 1})
    assert (named.coupled, numbered.coupled, named.coverage) == (False, False, 1.0)
    part = cb.exact_fisher(named.part(slice(2, 3))).trace() * 4  # a part counts the terms of the whole batch
    alone = cb.Instance(model, (x[:, 2:3], weights), y[2:3], sample_inputs={0: 1})
    assert part == pytest.approx(cb.exact_fisher(alone).trace(), rel=1e-12)
    for wrong, words in (({"z": 0}, "names 'z': the inputs are x, weights"), ({"x": 0}, "input 'x'")):
        if steps == 4 and "z" not in wrong:
            continue
        with pytest.raises(ValueError, match=words):
            cb.Instance(model, {"x": x, "weights": weights}, y, sample_inputs=wrong)


def test_an_optimizer_takes_the_dimension_of_the_samples() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(0, 1), nn.Linear(3, 4), nn.Tanh(), nn.Unflatten(0, (5, -1)), Last()).double()
    optimizer = cb.NaturalGradient(model, cb.probe("full", damping=0.1), lr=0.1, sample_inputs={0: 1})
    x, y = torch.randn(5, 6, 3).double(), torch.arange(6) % 2
    gradient = cb.Instance(model, x, y, sample_inputs={0: 1})
    expected = gradient.unpack(cb.exact_fisher(gradient).natural_gradient(gradient.gradient(), 0.1))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    for name, p in model.named_parameters():
        assert torch.allclose(p, before[name] - 0.1 * expected[name], rtol=1e-9, atol=1e-12), name


class Last(nn.Module):
    """(T, N, 4) -> (N, 2), from the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, h: Tensor) -> Tensor:
        return self.layer(h[-1])
