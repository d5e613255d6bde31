"""FNGD: weights of samples against dense natural gradients, the weighted backward pass, and the errata."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import kinds
import oracles
import pytest
import torch
from cases import CASES, Case, Truth, instance_of, mlp, truth
from torch import Tensor

import curvbench as cb
from curvbench.fisher import collect
from curvbench.meters.cost import Stepper, flop_rows
from curvbench.parts import weighted
from curvbench.parts.weighted import coefficients, weighted_gradient, weighted_sum

NAMES = ("mlp_tanh", "mlp_gaussian", "nasty_cnn", "conv1d", "padded_cnn", "tokens", "linear_4d")


def near(value: Tensor, expected: Tensor, tolerance: float = 1e-12) -> bool:
    scale = max(float(expected.abs().max()), 1e-300)
    return bool(((value - expected) / scale).norm() <= tolerance * (expected / scale).norm())


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


def step_of(instance: cb.Instance, **options: Any) -> Tensor:
    probe = cb.probe("fngd", **options)
    return probe.precondition(probe.refresh(probe.fit(instance)), instance.gradient())


def dense_steps(name: str, alpha: float, per: float) -> list[tuple[Tensor, float]]:
    """Per layer the damped natural gradient by a dense solve, and the damping: alpha |U^T U| / per."""
    judge, found = truth(name), []
    fisher, terms = judge.fisher("empirical"), len(judge.terms)
    for part in oracles.layer_slices(judge.model).values():
        block = fisher[part, part]
        damping = alpha * float(block.norm()) * terms / per
        found.append((oracles.natural_gradient(block, judge.gradient[part], damping), damping))
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gram", ["mean", "raw"])
def test_step_is_the_natural_gradient_of_every_layer(name: str, gram: str) -> None:
    """E-F12: ``natural`` is the dense natural gradient, ``normalized`` leaves lambda out."""
    steps = dense_steps(name, 0.01, len(truth(name).terms) if gram == "mean" else 1)
    natural = torch.cat([step for step, _ in steps])
    normalized = torch.cat([damping * step for step, damping in steps])
    found = step_of(instance_of(name), alpha=0.01, gram=gram, scale_mode="natural")
    assert near(found, natural, 1e-10)
    assert near(step_of(instance_of(name), alpha=0.01, gram=gram), normalized, 1e-10)
    assert oracles.relative(natural, normalized) > 0.1


@pytest.mark.parametrize("damping", [1e-6, 1e-3, 10.0])
def test_both_formulas_of_the_coefficients_agree(damping: float) -> None:
    """Eq. 9, its simplified form and U v; E-F1: without 1/M, as printed in Sec. IV-D, it is another vector."""
    judge = truth("mlp_tanh")
    scores = torch.stack([oracles.score(t, t.target, "cross_entropy") for t in judge.terms])
    U, M = scores[:, oracles.layer_slices(judge.model)["2"]].T, len(judge.terms)
    K, eye, ones = U.T @ U / M, torch.eye(M).double(), torch.ones(M).double()
    g = U @ ones / M
    eq9 = (ones - torch.linalg.solve(damping * eye + K, U.T @ g)) / (damping * M)
    found = coefficients(U.T @ U, M, damping) / (damping * M)
    expected = oracles.natural_gradient(U @ U.T / M, g, damping)
    assert near(U @ eq9, expected, 1e-9) and near(U @ found, expected, 1e-10)
    assert near(found, torch.linalg.solve(M * damping * eye + U.T @ U, ones), 1e-10)
    printed = (ones - torch.linalg.solve(damping * eye + U.T @ U, U.T @ g)) / (damping * M)
    assert damping > 1 or oracles.relative(U @ printed, expected) > 0.1


def test_printed_formula_is_the_sum_instead_of_the_mean() -> None:
    """E-F1 as an option: (U U^T + lambda I)^-1 g, which misses the natural gradient."""
    judge, instance = truth("mlp_tanh"), instance_of("mlp_tanh")
    fisher, expected = judge.fisher("empirical") * 7, []
    for part in oracles.layer_slices(judge.model).values():
        expected.append(oracles.natural_gradient(fisher[part, part], judge.gradient[part], 0.3))
    options = {"damping_rule": "constant", "constant": 0.3, "scale_mode": "natural"}
    assert near(step_of(instance, formula="printed", **options), torch.cat(expected), 1e-10)
    assert oracles.relative(step_of(instance, **options), torch.cat(expected)) > 0.1


def test_printed_damping_is_plain_gradient_descent() -> None:
    """E-F2: with the raw Gram matrix the factor lies in [alpha M / (1 + alpha M), 1]."""
    torch.manual_seed(0)
    inputs = torch.randn(128, 10).double()
    instance = cb.Instance(mlp(10, 20, 4).double(), inputs, torch.randint(4, (128,)))
    gradient = instance.gradient()
    raw, mean = (step_of(instance, gram=gram, alpha=0.005) for gram in ("raw", "mean"))
    assert cosine(raw, gradient) > 0.97 > 0.9 > cosine(mean, gradient)
    for block in cb.probe("fngd").fit(instance).blocks:
        damping = 0.005 * float(block.gram().norm())
        factor = damping / (damping + torch.linalg.eigvalsh(block.gram() / 128))
        assert 0.64 / 1.64 <= float(factor.min()) and float(factor.max()) <= 1 + 1e-12


# --- the weighted backward pass ----------------------------------------------------------------------------


@pytest.mark.parametrize("accelerated", [True, False])
def test_weighted_sums_are_sums_of_per_sample_gradients(
    case: Case, judge: Truth, instance: cb.Instance, accelerated: bool
) -> None:
    """E-F15: strides, padding of every mode, dilation, groups, biases, sequences."""
    factors = judge.factors("empirical")
    for columns in collect(instance, "empirical"):
        weights = torch.randn(columns.slopes.shape[:2]).double()
        order = [(i % instance.terms_per_sample, i // instance.terms_per_sample) for i in range(weights.numel())]
        valid = instance.likelihood.valid(instance.targets).movedim(-1, 0).reshape(weights.shape)
        kept = [pair for pair in order if bool(valid[pair])]
        scores = oracles.layer_scores(factors[columns.layer.name])
        expected = torch.stack([weights[pair] for pair in kept]) @ scores
        assert near(weighted_sum(columns, weights, accelerated), expected)


@pytest.mark.parametrize("name", NAMES)
def test_tiles_of_samples_add_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples at a time, and a rest; float32 loses no digits by it."""
    for columns in collect(instance_of(name), "empirical"):
        layer, x, slopes = columns.layer, columns.inputs, columns.slopes[0]
        weights = torch.randn(len(x)).double()
        expected = torch.einsum("n,ngms,ngds->gmd", weights, slopes, columns.patches())
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
            x_, slopes_, weights_ = (t.to(dtype) for t in (x, slopes, weights))
            smaller = min(x_[0].numel(), slopes_[0].numel()) * x_.element_size()
            monkeypatch.setattr(weighted, "_TILE_BYTES", 2 * smaller)
            assert near(weighted_gradient(layer, x_, slopes_, weights_).double(), expected, tolerance)


def test_every_layer_has_coefficients_of_its_own() -> None:
    """E-F15: Algorithm 1 has no layer index; with those of the first layer every other step is another one."""
    judge = truth("mlp_tanh")
    columns = [oracles.layer_scores(groups) for groups in judge.factors("empirical").values()]
    grams, step = [u @ u.T for u in columns], step_of(instance_of("mlp_tanh"), alpha=0.01)
    dampings = [0.01 * float(gram.norm()) / len(gram) for gram in grams]
    first = coefficients(grams[0], len(grams[0]), dampings[0])
    for i, part in enumerate(oracles.layer_slices(judge.model).values()):
        own = coefficients(grams[i], len(grams[i]), dampings[i])
        assert near(step[part], own @ columns[i] / len(own), 1e-10)
        assert i == 0 or oracles.relative(first @ columns[i] / len(own), step[part]) > 0.1


def test_gradients_of_a_mean_loss_lack_a_factor() -> None:
    """E-F15: with output gradients of the mean loss the weighted sum is 1/N of what it must be."""
    instance = instance_of("nasty_cnn")
    columns, weights = collect(instance, "empirical")[1], torch.rand(5).double()
    right = weighted_gradient(columns.layer, columns.inputs, columns.slopes[0], weights)
    lacking = weighted_gradient(columns.layer, columns.inputs, columns.slopes[0] / 5, weights)
    assert near(5 * lacking, right) and oracles.relative(lacking, right) > 0.7


@pytest.mark.parametrize("name", ["nasty_cnn", "conv1d"])
def test_gram_of_shared_weights_is_a_sum_over_pairs_of_positions(name: str) -> None:
    """E-F4: the identity of dense layers generalises."""
    for columns in collect(instance_of(name), "empirical"):
        X, Z = columns.patches(), columns.slopes[0]
        pairs = torch.einsum("ngds,kgdt->gnkst", X, X) * torch.einsum("ngms,kgmt->gnkst", Z, Z)
        scores = oracles.layer_scores(truth(name).factors("empirical")[columns.layer.name])
        assert near(pairs.sum((0, 3, 4)), scores @ scores.T)


def test_without_acceleration_nothing_else_changes() -> None:
    for stage in ("first", "shared"):
        fast, slow = (step_of(instance_of("nasty_cnn"), stage=stage, accelerated=a) for a in (True, False))
        assert near(slow, fast, 1e-11)


# --- sharing ----------------------------------------------------------------------------------------------


def after(seen: list[cb.Instance], **options: Any) -> tuple[Any, Any]:
    """The probe and its state after some batches."""
    probe, state = cb.probe("fngd", stage="shared", **options), None
    for batch in seen:
        state = probe.refresh(probe.update(state, batch))
    return probe, state


def shuffled(count: int, seed: int = 0, size: int = 32) -> list[cb.Instance]:
    """Batches drawn anew from 96 samples."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model, inputs = mlp(6, 8, 3).double(), torch.randn(96, 6).double()
    targets = torch.randint(3, (96,))
    picks = [torch.randperm(96, generator=generator)[:size] for _ in range(count)]
    return [cb.Instance(model, inputs[pick], targets[pick]) for pick in picks]


@pytest.mark.parametrize("scale_mode", ["normalized", "natural"])
def test_first_epoch_is_exact_in_both_stages(scale_mode: str) -> None:
    batches = shuffled(3)
    for count in (1, 2, 3):
        probe, state = after(batches[:count], batches=3, scale_mode=scale_mode)
        gradient = batches[count - 1].gradient()
        assert near(probe.precondition(state, gradient), step_of(batches[count - 1], scale_mode=scale_mode), 1e-10)


@pytest.mark.parametrize("name", ["tied", "tied_square", "embedded", "recurrent"])
@pytest.mark.parametrize("accelerated", [True, False])
def test_every_kind_of_block_is_shared(name: str, accelerated: bool) -> None:
    batch = kinds.kind(name)[3]
    probe, state = after([batch], accelerated=accelerated)
    assert near(probe.precondition(state, batch.gradient()), step_of(batch), 1e-10)


def scores_of(batch: cb.Instance) -> list[Tensor]:
    """Per layer the gradients of the samples' own losses by autograd, (N, P_l)."""
    found = []
    for x, y in zip(batch.inputs, batch.targets, strict=True):
        loss = torch.nn.functional.cross_entropy(batch.model(x[None]), y[None])
        grads = torch.autograd.grad(loss, list(batch.model.parameters()))
        pairs = zip(grads[::2], grads[1::2], strict=True)
        found.append([torch.cat([w, b[:, None]], 1).flatten() for w, b in pairs])
    return [torch.stack(layer) for layer in zip(*found, strict=True)]


@pytest.mark.parametrize("scale_mode", ["normalized", "natural"])
@pytest.mark.parametrize("key", ["position", "layer"])
def test_what_is_averaged_is_what_weighs(scale_mode: str, key: str) -> None:
    """Algorithm 1, line 7: the mean of v (natural) or of lambda M v, each batch with its own damping; by dense solves.

    In the step of ``precondition`` and in the weights of the backward pass alike.
    """
    *first, later = shuffled(5, seed=3)
    weights = []
    for batch in first:
        weights.append([])
        for U in scores_of(batch):
            gram = U @ U.T
            damping = 0.005 * gram.norm() / 32
            v = torch.linalg.solve(32 * damping * torch.eye(32).double() + gram, torch.ones(32).double())
            weights[-1].append(v if scale_mode == "natural" else damping * 32 * v)
    averages = [sum(layer) / len(first) for layer in zip(*weights, strict=True)]
    if key == "layer":
        averages = [average.mean().expand(32) for average in averages]
    probe, state = after([*first, later], batches=len(first), scale_mode=scale_mode, key=key)
    unit = 1 if scale_mode == "natural" else 1 / 32  # what is left of c / M
    expected = torch.cat([unit * average @ U for average, U in zip(averages, scores_of(later), strict=True)])
    assert near(probe.precondition(state, later.gradient()), expected, 1e-10)
    found = probe.weigh(state, later)
    assert found is not None and near(found[0], torch.stack(averages) * 32 * unit, 1e-10)


def test_a_batch_in_which_a_layer_is_dead_says_nothing_of_it() -> None:
    batches = shuffled(2)
    for mode in ("normalized", "natural"):
        alone = after(batches, batches=2, scale_mode=mode)[1].shared
        dead = replace(alone, average=torch.ones_like(alone.average), means=torch.ones_like(alone.means))
        dead = replace(dead, dampings=torch.zeros_like(alone.dampings), counts=torch.zeros_like(alone.counts))
        for joined in (alone.extend(dead), dead.extend(alone)):
            assert near(joined.average, alone.average) and near(joined.dampings, alone.dampings)


def test_later_batches_take_the_average_of_the_first_epoch() -> None:
    """By position, from dense per-sample scores; a last batch that is smaller takes the first entries."""
    *first, later = shuffled(4)
    average = (
        sum(
            torch.stack([coefficients(b.gram(), 32, d) for b, d in zip(s.blocks, s.dampings, strict=True)])
            for s in (cb.probe("fngd").fit(batch) for batch in first)
        )
        / 3
    )
    small = cb.Instance(later.model, later.inputs[:10], later.targets[:10])
    for batch in (later, small):
        probe, state = after([*first, batch], batches=3)
        scores = [c.slopes[0] @ c.patches().mT for c in collect(batch, "empirical")]
        weighted = [torch.einsum("n,ngmd->gmd", w[: batch.samples], s) for w, s in zip(average, scores, strict=True)]
        expected = torch.cat([w.flatten() for w in weighted]) / batch.samples
        assert near(probe.precondition(state, batch.gradient()), expected, 1e-10)


def test_a_smaller_batch_of_the_first_epoch_is_left_out() -> None:
    batches = shuffled(2)
    small = cb.Instance(batches[0].model, batches[1].inputs[:7], batches[1].targets[:7])
    whole, mixed = (after(b, batches=len(b))[1].shared for b in (batches, [batches[0], small, batches[1]]))
    assert torch.equal(whole.average, mixed.average) and mixed.seen == 3 and mixed.counts.tolist() == [2, 2]


def test_shared_coefficients_tend_to_a_constant() -> None:
    """E-F5: spread over positions is std / sqrt(B); afterwards the step is gradient descent with a rate per layer."""

    def spread(count: int) -> float:
        return float(after(shuffled(count), batches=count)[1].shared.average[0].std())

    single = spread(1)
    for count in (9, 64):
        assert 0.5 < spread(count) / (single / count**0.5) < 2
    batches = shuffled(65)
    probe, state = after(batches, batches=64)
    step, gradient = probe.precondition(state, batches[-1].gradient()), batches[-1].gradient()
    sizes = oracles.layer_sizes(batches[-1].model)
    layers = list(zip(step.split(sizes), gradient.split(sizes), step_of(batches[-1]).split(sizes), strict=True))
    for shared, plain, exact in layers:
        assert cosine(shared, plain) > 0.97 > cosine(exact, plain)


def test_coefficients_by_sample_are_those_of_the_sample() -> None:
    """The control: at frozen parameters a batch seen before, in another order, gets its own exact step."""
    batch = shuffled(1)[0]
    order = torch.randperm(32)
    again = cb.Instance(batch.model, batch.inputs[order], batch.targets[order])
    probe, state = after([batch, again], key="sample")
    assert near(probe.precondition(state, again.gradient()), step_of(batch), 1e-10)
    by_position, other = after([batch, again])
    assert oracles.relative(by_position.precondition(other, again.gradient()), step_of(batch)) > 0.05


def test_unknown_samples_get_the_mean() -> None:
    batch, other = shuffled(1)[0], shuffled(1, seed=1)[0]
    other = cb.Instance(batch.model, other.inputs, other.targets)
    probe, state = after([batch, other], key="sample")
    means = state.shared.means
    parts = other.gradient().split(oracles.layer_sizes(other.model))
    expected = torch.cat([m * part for m, part in zip(means, parts, strict=True)])
    assert near(probe.precondition(state, other.gradient()), expected, 1e-10)


def test_one_rate_per_layer_is_the_control_of_sharing() -> None:
    """E-F5: the same as shared coefficients up to their spread."""
    batches = shuffled(9)
    (control, state), (probe, other) = (after(batches, batches=8, key=key) for key in ("layer", "position"))
    gradient = batches[-1].gradient()
    parts = gradient.split(oracles.layer_sizes(batches[-1].model))
    expected = torch.cat([m * part for m, part in zip(state.shared.means, parts, strict=True)])
    assert near(control.precondition(state, gradient), expected, 1e-10)
    assert cosine(probe.precondition(other, gradient), expected) > 0.95


@pytest.mark.parametrize("scale_mode", ["normalized", "natural"])
def test_the_surrogate_is_the_mean_coefficient(scale_mode: str) -> None:
    """(F + lambda)^-1 = c / lambda: a multiple of the identity per layer."""
    batch = shuffled(1)[0]
    state = cb.probe("fngd").fit(batch)
    found = cb.fit(cb.probe("fngd", stage="shared", scale_mode=scale_mode), batch).to_dense().diagonal()
    found = found.split(oracles.layer_sizes(batch.model))
    for block, damping, entries in zip(state.blocks, state.dampings, found, strict=True):
        mean = float(coefficients(block.gram(), 32, damping).mean())
        assert near(entries + damping, torch.full_like(entries, damping / mean))


def test_the_shared_step_is_linear_in_the_gradient() -> None:
    batches = shuffled(3)
    probe, state = after(batches, batches=2)
    v, w = (torch.randn(batches[0].size).double() for _ in range(2))
    expected = 2 * probe.precondition(state, v) - probe.precondition(state, w)
    assert near(probe.precondition(state, 2 * v - w), expected, 1e-10)
    sizes = oracles.layer_sizes(batches[0].model)
    across = [v_l - (v_l @ g) / (g @ g) * g for v_l, g in zip(v.split(sizes), state.own, strict=True)]
    scaled = torch.cat([m * part for m, part in zip(state.shared.means, across, strict=True)])
    assert near(probe.precondition(state, torch.cat(across)), scaled, 1e-10)


# --- bounds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["one_hot", "certain", "dead_unit", "dead_channel", "one_sample"])
@pytest.mark.parametrize("stage", ["first", "shared"])
@pytest.mark.parametrize("scale_mode", ["normalized", "natural"])
def test_layers_without_scores_keep_their_gradient(name: str, stage: str, scale_mode: str) -> None:
    instance = instance_of(name)
    step = step_of(instance, stage=stage, scale_mode=scale_mode)
    assert bool(torch.isfinite(step).all())
    assert bool(torch.isfinite(cb.fit(cb.probe("fngd", stage=stage), instance).to_dense()).all())
    model, inputs, _ = CASES["mlp_gaussian"].build()
    zero = cb.Instance(model, inputs, model(inputs).detach(), loss="gaussian")
    assert torch.equal(step_of(zero, stage=stage, scale_mode=scale_mode), zero.gradient())


def test_samples_are_known_by_one_tensor() -> None:
    model, inputs, targets = CASES["mlp_tanh"].build()
    reason = cb.probe("fngd", key="sample").unsupported(cb.Instance(model, (inputs,), targets))
    assert reason is not None and "\n" not in reason
    assert cb.probe("fngd", key="sample").unsupported(instance_of("mlp_tanh")) is None


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"constant": -1.0}, {"batches": 0}, {"stage": "later"}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        cb.probe("fngd", **options)


@pytest.mark.parametrize(
    "options", [{}, {"stage": "shared"}, {"accelerated": False}, {"stage": "shared", "key": "sample"}]
)
def test_every_operation_is_counted(options: dict[str, Any]) -> None:
    for name in ("nasty_cnn", "conv1d", "tokens"):
        rows = flop_rows(Stepper(cb.probe("fngd", **options), instance_of(name)))
        assert not [row.reason for row in rows if row.metric == "flops.uncounted_ops" and row.value]
