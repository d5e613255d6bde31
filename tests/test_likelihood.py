"""The factor of the output curvature, its stability at saturated probabilities, and the gradient's coefficients."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import likelihoods
import pytest
import torch
from likelihoods import ROWS, Row
from torch import Tensor, nn

import curvbench as cb
from curvbench.instance.likelihood import Likelihood, cotangents, gradient_coefficients, likelihood
from curvbench.instance.outputs import arranged

CROSS = likelihood("cross_entropy")
NONE = torch.zeros(0, dtype=torch.int64)  # the curvature of a plain cross entropy reads no targets


def logits(scale: float, seed: int = 0, shape: tuple[int, ...] = (6, 5)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def curvature(outputs: Tensor) -> Tensor:
    """diag(p) - p p^T from products of pairs: -p_i p_j, and on the diagonal p_i times the sum of the others."""
    p = torch.softmax(outputs, -1)
    outer = -p[..., :, None] * p[..., None, :]
    off = outer - torch.diag_embed(outer.diagonal(dim1=-2, dim2=-1))
    return off + torch.diag_embed(-off.sum(-1))


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, 300.0])
def test_factor_squares_to_the_curvature(scale: float) -> None:
    outputs = logits(scale)
    columns = CROSS.factor(outputs, NONE)
    assert columns.shape == (4, 6, 5)
    curvatures, expected = torch.einsum("rni,rnj->nij", columns, columns), curvature(outputs)
    for f, e in zip(curvatures, expected, strict=True):
        assert float((f - e).norm()) <= 1e-13 * float(e.norm())


def test_factor_is_finite_where_probabilities_underflow() -> None:
    outputs = torch.tensor([[0.0, -2000.0, -1000.0, -1500.0], [-1000.0, 0.0, -2000.0, -2000.0]])
    for tensor in (outputs, outputs.double()):
        assert torch.isfinite(CROSS.factor(tensor, NONE)).all()
        for target in range(4):
            assert torch.isfinite(CROSS.coefficients(tensor, torch.full((2,), target))).all()


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("target", range(5))
def test_coefficients_give_the_residual(scale: float, target: int) -> None:
    outputs, targets = logits(scale), torch.full((6,), target)
    combined = (CROSS.coefficients(outputs, targets)[..., None] * CROSS.factor(outputs, NONE)).sum(0)
    residual = torch.softmax(outputs, -1) - torch.eye(5, dtype=torch.float64)[target]
    assert float((combined - residual).abs().max()) <= 1e-14
    assert float((CROSS.residual(outputs, targets) - residual).abs().max()) <= 1e-15


def test_residual_of_a_saturated_target_keeps_its_digits() -> None:
    """p_y - 1 = -exp(-40): the subtraction from 1 would give 0."""
    score = CROSS.residual(torch.tensor([[40.0, 0.0]], dtype=torch.float64), torch.tensor([0]))
    assert score[0, 0].item() == pytest.approx(-torch.exp(torch.tensor(-40.0, dtype=torch.float64)).item(), rel=1e-12)


def test_gradient_coefficients_of_sequences_leave_ignored_tokens_out() -> None:
    outputs = logits(1.0, shape=(2, 3, 4))
    targets = torch.tensor([[0, 1, -100], [3, -100, -100]])
    a = gradient_coefficients(CROSS, outputs, targets)
    columns = torch.stack(list(cotangents(CROSS, outputs, targets, "type-2")))
    assert a.shape == (9, 2)
    expected = CROSS.residual(outputs, targets) * (targets != -100)[..., None] / 3
    assert torch.allclose((a[..., None, None] * columns).sum(0), expected, atol=1e-14)


def test_sampled_scores_have_mean_zero_and_the_curvature_as_covariance() -> None:
    """Within five standard errors; the same seed draws the same."""
    outputs, targets, draws = logits(1.0, shape=(1, 3)), torch.zeros(1, dtype=torch.int64), 20_000
    scores = torch.stack(list(cotangents(CROSS, outputs, targets, "mc", draws, seed=3)))[:, 0] * draws**0.5
    assert float(scores.mean(0).abs().max()) <= 5 * draws**-0.5
    assert float((scores.T @ scores / draws - curvature(outputs)[0]).abs().max()) <= 5 * draws**-0.5
    again = torch.stack(list(cotangents(CROSS, outputs, targets, "mc", draws, seed=3)))[:, 0] * draws**0.5
    assert torch.equal(again, scores)
    other = torch.stack(list(cotangents(CROSS, outputs, targets, "mc", draws, seed=4)))[:, 0] * draws**0.5
    assert not torch.equal(other, scores)


def test_gaussian_loss_is_half_the_squared_distance() -> None:
    gaussian = likelihood("gaussian")
    outputs, targets = logits(1.0, 1), logits(1.0, 2)
    expected = sum(0.5 * float(((f - y) ** 2).sum()) for f, y in zip(outputs, targets, strict=True)) / 6
    assert float(gaussian.loss(outputs, targets)) == pytest.approx(expected, rel=1e-14)
    columns = gaussian.factor(outputs, targets)
    assert torch.equal(torch.einsum("rni,rnj->nij", columns, columns), torch.eye(5).double().expand(6, 5, 5))


# --- losses of torch and of users --------------------------------------------------------------------------


def outputs_of(row: Row) -> Any:
    x = torch.randn(likelihoods.SAMPLES, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return row.model()(x)


def order(row: Row, outputs: Any, model: Likelihood) -> Tensor:
    """The place of each arranged output among the raw ones."""
    if isinstance(outputs, tuple):
        size = outputs[0].numel()
        places: Any = tuple(k * size + torch.arange(size).double().reshape(outputs[0].shape) for k in (0, 1))
    else:
        places = torch.arange(outputs.numel()).double().reshape(outputs.shape)
    return arranged(places, row.targets, model)[0].flatten().long()


def squares(model: Likelihood, outputs: Tensor, targets: Tensor, fisher_type: str, **draws: int) -> Tensor:
    """(1/terms) sum v v^T over the cotangents, a matrix over all outputs; samples do not couple in it."""
    samples, terms = len(outputs), int(model.valid(targets).sum())
    columns = torch.stack(list(cotangents(model, outputs, targets, fisher_type, **draws))).flatten(2)
    return torch.block_diag(*(columns[:, n].T @ columns[:, n] / terms for n in range(samples)))


@pytest.mark.parametrize("name", ROWS)
def test_columns_square_to_the_curvature_of_torch_s_loss(name: str) -> None:
    row = ROWS[name]
    raw, model = outputs_of(row), likelihood(row.loss)
    outputs, targets = arranged(raw, row.targets, model)
    model.check(outputs, targets)
    places = order(row, raw, model)
    expected = likelihoods.curvature(row, raw)[places][:, places]
    found = squares(model, outputs, targets, "type-2")
    assert float((found - expected).norm()) <= 1e-13 * float(expected.norm())
    assert model.is_fisher == row.is_fisher


@pytest.mark.parametrize("name", ROWS)
def test_gradients_of_torch_s_loss_are_means_of_columns(name: str) -> None:
    """The loss is torch's, its gradient the mean of the empirical columns, and also a sum of the type-2 columns."""
    row = ROWS[name]
    raw, model = outputs_of(row), likelihood(row.loss)
    leaves = [x.detach().requires_grad_() for x in (raw if isinstance(raw, tuple) else (raw,))]
    loss = row.value(tuple(leaves) if len(leaves) > 1 else leaves[0])
    outputs, targets = arranged(raw, row.targets, model)
    assert float(model.loss(outputs, targets)) == pytest.approx(float(loss.detach()), rel=1e-14)
    flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves)])
    expected = flat[order(row, raw, model)].reshape(outputs.shape)
    if isinstance(row.loss, nn.NLLLoss):  # through the log-softmax
        expected = expected - outputs.exp() * expected.sum(-1, keepdim=True)
    mean = sum(cotangents(model, outputs, targets, "empirical")) / model.valid(targets).sum()
    assert float((mean - expected).abs().max()) <= 1e-15 * float(mean.abs().max()) * 20
    columns = torch.stack(list(cotangents(model, outputs, targets, "type-2")))
    combined = (gradient_coefficients(model, outputs, targets)[(...,) + (None,) * (outputs.ndim - 1)] * columns).sum(0)
    if name != "huber":  # whose gradient lies outside its curvature
        assert float((combined - expected).abs().max()) <= 1e-13 * float(expected.abs().max())


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if isinstance(row.loss, nn.Module)])
def test_sampled_columns_have_the_curvature_as_mean_square(name: str) -> None:
    """Within five standard errors of each entry, which the draws themselves tell."""
    row, draws = ROWS[name], 4000
    raw, model = outputs_of(row), likelihood(row.loss)
    outputs, targets = arranged(raw, row.targets, model)
    columns = torch.stack(list(cotangents(model, outputs, targets, "mc", draws))) * draws**0.5
    terms = columns.reshape(draws, -1, outputs.shape[-1])
    products = terms[..., None] * terms[..., None, :]
    exact = torch.stack(list(cotangents(model, outputs, targets, "type-2"))).reshape(-1, *terms.shape[1:])
    expected = torch.einsum("rni,rnj->nij", exact, exact)
    error = products.std(0) / draws**0.5
    assert bool(((products.mean(0) - expected).abs() <= 5 * error + 1e-12).all())
    assert bool((terms.mean(0).abs() <= 5 * terms.std(0) / draws**0.5 + 1e-12).all())


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, in forward-mode derivatives
@pytest.mark.parametrize("name", ["weighted pixels", "mean and variance", "squares, one output", "poisson"])
def test_an_instance_has_the_curvature_of_torch_s_loss(name: str) -> None:
    """J^T H J with the Jacobian of the network, and the gradient; also where parts of the batch pass alone."""
    row = ROWS[name]
    network = row.model()
    x = torch.randn(likelihoods.SAMPLES, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    instance = cb.Instance(network, x, row.targets, row.loss)
    parameters = list(network.parameters())
    returned = network(x)
    raw = returned if isinstance(returned, tuple) else (returned,)
    numbers = torch.cat([r.flatten() for r in raw])
    rows = [torch.autograd.grad(number, parameters, retain_graph=True) for number in numbers]
    jacobian = torch.stack([instance.pack(dict(zip(dict(network.named_parameters()), r, strict=True))) for r in rows])
    detached = tuple(r.detach() for r in raw) if len(raw) > 1 else raw[0].detach()
    expected = jacobian.T @ likelihoods.curvature(row, detached) @ jacobian
    found = cb.exact_fisher(instance).to_dense()
    assert float((found - expected).norm()) <= 1e-12 * float(expected.norm())
    gradient = torch.autograd.grad(row.value(returned), parameters)
    packed = instance.pack(dict(zip(dict(network.named_parameters()), gradient, strict=True)))
    assert float((instance.gradient() - packed).norm()) <= 1e-13 * float(packed.norm())
    vector = torch.randn(instance.size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert float((instance.fisher_product(vector) - expected @ vector).norm()) <= 1e-12 * float(expected.norm() * 10)


def test_a_part_of_a_batch_keeps_the_weights_of_the_whole() -> None:
    row = ROWS["weighted pixels"]
    x = torch.randn(likelihoods.SAMPLES, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    instance = cb.Instance(row.model(), x, row.targets, row.loss)
    outputs, some = instance.outputs(), slice(1, 3)
    for kind in ("type-2", "empirical"):
        whole = torch.stack(list(instance.cotangents(outputs, kind)))[:, some]
        assert torch.equal(torch.stack(list(instance.part(some).cotangents(outputs[some], kind))), whole)
    other = instance.with_batch(x[some], row.targets[some])
    expected = squares(likelihood(row.loss), outputs[some], other.targets, "type-2")
    assert torch.equal(squares(other.likelihood, outputs[some], other.targets, "type-2"), expected)


class Rates(Likelihood):
    """Counts with logarithmic rates; only what every likelihood needs."""

    def factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.diag_embed((outputs / 2).exp()).movedim(-1, 0)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.exp() - targets * outputs).sum(-1).mean()


def test_a_likelihood_of_a_user_needs_a_factor_and_a_loss() -> None:
    row, model = ROWS["poisson"], likelihood(Rates())
    outputs, targets = outputs_of(row), row.targets
    for kind in ("type-2", "empirical"):
        expected = squares(likelihood(row.loss), outputs, targets, kind)
        assert torch.allclose(squares(model, outputs, targets, kind), expected, rtol=0, atol=1e-14)
    combined = model.coefficients(outputs, targets)[..., None] * model.factor(outputs, targets)
    assert torch.allclose(combined.sum(0), outputs.exp() - targets, rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="Rates draws no targets"):
        list(cotangents(model, outputs, targets, "mc"))
    assert model.name == "Rates" and not model.is_fisher


@pytest.mark.parametrize("loss", [likelihoods.negative_log_softmax, nn.CrossEntropyLoss(torch.rand(3).double())])
def test_a_token_that_every_sequence_ignores_has_no_columns(loss: Any) -> None:
    outputs, targets, model = logits(1.0, shape=(2, 2, 3)), torch.tensor([[1, -100], [2, -100]]), likelihood(loss)
    model.check(outputs, targets)
    for kind in ("type-2", "empirical"):
        columns = torch.stack(list(cotangents(model, outputs, targets, kind)))
        expected = torch.stack(list(cotangents(model, outputs[:, :1], targets[:, :1], kind)))
        assert torch.equal(columns[: len(expected), :, :1], expected) and not columns[..., 1, :].any()
        assert not torch.stack(list(cotangents(model, outputs[:, 1:], targets[:, 1:], kind))).any()


class Labelled(Rates):
    """Rates of one label each, so that a term may be ignored."""

    def factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().factor(outputs, targets)[:1]

    def rank(self, classes: int) -> int:
        return 1

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs[..., 0][self.valid(targets)].exp().mean()


def test_a_part_without_terms_has_no_columns_of_a_user_s_likelihood() -> None:
    outputs, targets = logits(1.0, shape=(2, 3)), torch.tensor([0, -100])
    for kind in ("type-2", "empirical"):
        assert not torch.stack(list(cotangents(Labelled(), outputs[1:], targets[1:], kind))).any()
        assert torch.stack(list(cotangents(Labelled(), outputs, targets, kind)))[:, 0].any()


class Narrow(Rates):
    def rank(self, classes: int) -> int:
        return 1


def student(outputs: Tensor, target: Tensor) -> Tensor:
    return (outputs - target).square().div(3).log1p().sum() * 2


def branching(outputs: Tensor, target: Tensor) -> Tensor:
    return outputs.sum() if outputs.sum() > 0 else outputs.square().sum()


def two_numbers(outputs: Tensor, target: Tensor) -> Tensor:
    return outputs - target


ZEROS = torch.zeros(4, 3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("loss", "targets", "words"),
    [
        (nn.L1Loss(), ZEROS, "no curvature is known for the loss L1Loss"),
        (nn.MSELoss(reduction="none"), ZEROS, "reduction='mean' or 'sum'"),
        (nn.MSELoss, ZEROS, "a loss is a name"),
        (3, ZEROS, "a loss is a name"),
        (student, ZEROS + 9, "student is not convex in the outputs"),
        (branching, ZEROS, "branching cannot be differentiated term by term"),
        (two_numbers, ZEROS, "map one term to a number, got shape"),
        (lambda f, y: 1.0, ZEROS, "map one term to a number, got float"),
        (Narrow(), ZEROS, "correct factor, or define rank"),
        (nn.GaussianNLLLoss(), ZEROS, "reads \\(mean, variance\\), the model returns one tensor"),
        (nn.CrossEntropyLoss(torch.ones(2)), torch.zeros(4).long(), "needs 3 class weights"),
        (nn.CrossEntropyLoss(-torch.ones(3)), torch.zeros(4).long(), "not negative"),
        (nn.CrossEntropyLoss(torch.eye(3)[0]), torch.ones(4).long(), "every target has the class weight zero"),
        (nn.CrossEntropyLoss(), torch.full((4,), 3), "must lie in 0..2"),
        (nn.CrossEntropyLoss(), ZEROS - 1, "finite and not negative"),
        (nn.CrossEntropyLoss(), ZEROS[:, 0], "probabilities like the outputs"),
        (nn.NLLLoss(), torch.zeros(4).long(), "needs logarithms of probabilities"),
        (nn.BCEWithLogitsLoss(), ZEROS + 2, "needs targets in 0..1"),
        (nn.BCEWithLogitsLoss(torch.ones(4, 1)), ZEROS, "expand to one sample's outputs"),
        (nn.BCEWithLogitsLoss(), ZEROS[:, :1], "needs targets like the outputs"),
        (student, torch.zeros(3).long(), "needs a target for each of the terms"),
        (student, torch.full((4,), -100), "no loss term is left"),
    ],
)
def test_a_loss_without_curvature_is_refused_in_one_line(loss: Any, targets: Tensor, words: str) -> None:
    outputs = logits(1.0, shape=(4, 3))
    with pytest.raises(ValueError, match=words) as caught:
        model = likelihood(loss)
        values, wanted = arranged(outputs, targets, model)
        model.check(values, wanted)
        list(cotangents(model, values, wanted, "type-2"))
    assert "\n" not in str(caught.value)


def test_names_tell_the_settings_of_a_loss() -> None:
    named = {
        "cross_entropy": "cross_entropy",
        "CrossEntropyLoss": nn.CrossEntropyLoss(),
        "CrossEntropyLoss(label_smoothing=0.1)": nn.CrossEntropyLoss(label_smoothing=0.1),
        "BCEWithLogitsLoss(pos_weight=[2, 0.5], reduction=sum)": nn.BCEWithLogitsLoss(
            pos_weight=torch.tensor([2, 0.5]), reduction="sum"
        ),
        "huber": likelihoods.huber,
        "GaussianNLLLoss(eps=0.5)": nn.GaussianNLLLoss(eps=0.5),
    }
    assert [likelihood(loss).name for loss in named.values()] == list(named)
    long = [likelihood(nn.CrossEntropyLoss(torch.arange(9.0) + k)).name for k in (0, 1)]
    assert long[0] != long[1] and long[0].startswith("CrossEntropyLoss(weight=[9 numbers, ")
    units = {nn.MSELoss(): "mean over entries", nn.MSELoss(reduction="sum"): "sum over entries"}
    assert [likelihood(loss).unit for loss in units] == list(units.values())


@pytest.mark.parametrize("name", ROWS)
def test_likelihoods_can_be_sent_to_another_process(name: str) -> None:
    model = likelihood(ROWS[name].loss)
    assert pickle.loads(pickle.dumps(model)).name == model.name


def test_rounding_of_a_saturated_term_is_no_negative_curvature() -> None:
    model, outputs = likelihood(likelihoods.negative_log_softmax), 12 * torch.eye(3)
    for n in range(3):
        assert torch.isfinite(model.factor(outputs[n : n + 1], torch.tensor([0]))).all()


def test_natural_gradient_trains_under_a_loss_of_torch() -> None:
    row = ROWS["ignored 0, weights, smoothing"]
    model, x = row.model(), torch.randn(likelihoods.SAMPLES, 3, dtype=torch.float64)
    optimizer = cb.NaturalGradient(model, cb.probe("full", damping=0.1), lr=1.0, loss=row.loss)
    instance = cb.Instance(copy.deepcopy(model), x, row.targets, row.loss)
    row.value(optimizer.forward(x, row.targets)).backward()
    optimizer.step()
    before, after = (instance.pack(dict(m.named_parameters())).detach() for m in (instance.model, model))
    expected = cb.exact_fisher(instance).solve(instance.gradient(), 0.1)
    assert float((before - after - expected).norm()) <= 1e-10 * float(expected.norm())


def test_coefficients_of_saturated_outputs_stay_finite() -> None:
    outputs = torch.tensor([[0.0, -2000.0, 900.0], [800.0, -800.0, 0.0]], dtype=torch.float64)
    for loss, targets in (
        (nn.CrossEntropyLoss(label_smoothing=0.1), torch.tensor([1, 0])),
        (nn.BCEWithLogitsLoss(), torch.eye(3, dtype=torch.float64)[:2]),
    ):
        model = likelihood(loss)
        assert torch.isfinite(model.factor(outputs, targets)).all()
        assert torch.isfinite(model.residual(outputs, targets)).all()
        assert torch.isfinite(model.coefficients(outputs, targets)).all()
