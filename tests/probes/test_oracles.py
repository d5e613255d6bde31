"""What each probe must represent: dense matrices and the cases in which an approximation is exact.

The first tests judge the judges: the oracles are compared with second derivatives by autograd and with each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
from cases import CASES, Case, MeanPool, Truth, instance_of, mlp, truth, weights_of
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import curvbench as cb
from curvbench.spec import Layer

KINDS = ("type-2", "empirical")


def dense_of(name: str, case: str, **hyperparameters: Any) -> Tensor:
    return cb.fit(cb.probe(name, **hyperparameters), instance_of(case)).to_dense()


def near(value: Tensor, expected: Tensor, tolerance: float = 1e-10) -> bool:
    """Relative Frobenius distance below the tolerance; false for NaN, exact where the expected matrix is zero."""
    scale = max(float(expected.abs().max()), 1e-300)
    return bool(((value - expected) / scale).norm() <= tolerance * (expected / scale).norm())


# --- the judges agree with each other ----------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["cross_entropy", "gaussian"])
def test_judge_of_one_linear_layer_is_the_hessian_of_the_loss(loss: str) -> None:
    """Where outputs are linear in the parameters, the type-2 Fisher is the Hessian."""
    torch.manual_seed(0)
    model, x = nn.Linear(3, 4).double(), torch.randn(5, 3).double()
    y = torch.randint(4, (5,)) if loss == "cross_entropy" else torch.randn(5, 4).double()

    def value(vector: Tensor) -> Tensor:
        matrix = vector.reshape(4, 4)
        outputs = x @ matrix[:, :3].T + matrix[:, 3]
        return functional.cross_entropy(outputs, y) if loss == "cross_entropy" else (outputs - y).square().sum() / 10

    point = oracles.pack(nn.Sequential(model), {f"0.{n}": p.detach() for n, p in model.named_parameters()})
    hessian = torch.autograd.functional.hessian(value, point)
    network = nn.Sequential(model)
    assert near(oracles.type2_fisher(oracles.loss_terms(network, x, y, loss), loss), hessian, 1e-12)


def test_judge_is_the_generalized_gauss_newton_matrix(case: Case, judge: Truth) -> None:
    """The judge is the mean of J' Lambda J, with Lambda as the loss's Hessian in the outputs by autograd."""

    def term_loss(output: Tensor, target: Tensor) -> Tensor:
        if case.loss == "gaussian":
            return 0.5 * (output - target).square().sum()
        return functional.cross_entropy(output.unsqueeze(0), target.reshape(1))

    total = torch.zeros(judge.size, judge.size, dtype=torch.float64)
    for term in judge.terms:
        curvature = torch.autograd.functional.hessian(lambda f, y=term.target: term_loss(f, y), term.output)
        total += term.jacobian.T @ curvature @ term.jacobian / len(judge.terms)
    tolerance = {"certain": 1e-3, "one_hot": float("inf")}.get(case.name, 1e-12)  # autograd cancels p - p p there
    assert near(judge.fisher(), total, 1e-12) or float((judge.fisher() - total).norm()) <= tolerance


def test_judge_of_positions_agrees_with_the_jacobians(case: Case, judge: Truth) -> None:
    """Sums over cut-out patches, against derivatives that know nothing of convolutions."""
    for kind in KINDS:
        scores = torch.cat([oracles.layer_scores(groups) for groups in judge.factors(kind).values()], dim=1)
        assert near(scores.T @ scores / len(judge.terms), judge.fisher(kind), 1e-12)


def test_judge_of_the_gradient_is_that_of_torch(case: Case, judge: Truth) -> None:
    model, inputs, targets = case.build()
    expected = oracles.packed_gradient(model, oracles.mean_loss(model, inputs, targets, case.loss))
    assert near(judge.gradient, expected, 1e-12)


def test_score_has_mean_zero_under_the_model(judge: Truth, case: Case) -> None:
    """Scores of the model's own labels have mean zero."""
    if case.loss == "gaussian":
        pytest.skip("labels of a Gaussian are not enumerable")
    for term in judge.terms:
        probabilities = term.output.softmax(0)
        scores = torch.stack([oracles.score(term, c, case.loss) for c in range(len(probabilities))])
        assert float((probabilities @ scores).norm()) <= 1e-12 * float(scores.norm())


def test_judge_of_kronecker_parts() -> None:
    torch.manual_seed(1)
    b, a = torch.randn(3, 3).double(), torch.randn(4, 4).double()
    b, a = b @ b.T, a @ a.T
    block = torch.kron(b, a)
    assert near(oracles.kpsvd_block(block, 3, 4), block, 1e-12)
    assert near(oracles.tkfac_block(block, 3, 4), block, 1e-12)
    assert near(oracles.ekfac_block(block, b, a), block, 1e-12)
    left, right = oracles.partial_traces(block, 3, 4)
    assert near(left, b * a.trace(), 1e-12) and near(right, a * b.trace(), 1e-12)


# --- exact Fisher ------------------------------------------------------------------------------------------


def test_trace_of_the_empirical_fisher_is_the_mean_squared_score(case: Case, judge: Truth) -> None:
    """tr F is the mean of |score|^2 over the loss terms."""
    scores = [oracles.score(term, term.target, case.loss) for term in judge.terms]
    expected = sum(float(s @ s) for s in scores) / len(scores)
    found = float(cb.exact_fisher(instance_of(case.name), fisher_type="empirical").trace())
    assert found == pytest.approx(expected, rel=1e-12)


# --- projections -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_projections_are_parts_of_the_dense_matrix(case: Case, judge: Truth, kind: str) -> None:
    dense, model = judge.fisher(kind), judge.model
    expected = {
        "full": dense,
        "layer": oracles.keep(dense, oracles.layer_sizes(model)),
        "unit": oracles.keep(dense, oracles.unit_sizes(model)),
        "diag": torch.diag(dense.diagonal()),
    }
    for name, matrix in expected.items():
        assert near(dense_of(name, case.name, fisher_type=kind), matrix), name


@pytest.mark.parametrize("kind", KINDS)
def test_nested_projections(case: Case, judge: Truth, kind: str) -> None:
    """A finer block structure has the larger error; each projection keeps the trace and obeys Pythagoras."""
    dense = judge.fisher(kind)
    operators = {
        name: cb.fit(cb.probe(name, fisher_type=kind), instance_of(case.name))
        for name in ("full", "layer", "unit", "diag")
    }
    errors = [oracles.relative(operator.to_dense(), dense) for operator in operators.values()]
    assert errors[0] <= 1e-10
    assert all(finer <= coarser + judge.rounding for finer, coarser in itertools.pairwise(errors))
    scale = float(dense.abs().max())
    for operator, error in zip(operators.values(), errors, strict=True):
        share = float((operator.to_dense() / scale).norm() / (dense / scale).norm()) ** 2
        assert share + error**2 == pytest.approx(1, abs=judge.rounding)
        assert float(operator.trace()) == pytest.approx(float(dense.trace()), rel=1e-12)


@pytest.mark.parametrize("name", ["kfac", "diag", "layer", "identity"])
def test_error_by_products_alone(judge: Truth, case: Case, name: str) -> None:
    """The squared error is |F^|^2 - 2/N sum u' F^ u + |U'U|^2/N^2 with the score columns of the judge."""
    operator = cb.fit(cb.probe(name), instance_of(case.name))
    rows = torch.cat([oracles.type2_rows(term, case.loss) for term in judge.terms]) / len(judge.terms) ** 0.5
    gram, matrix = rows @ rows.T, operator.to_dense()
    inner = float((rows.T * operator.matmat(rows.T)).sum())
    found = float(operator.frobenius_norm()) ** 2 - 2 * inner + float(gram.square().sum())
    largest = float(matrix.square().sum() + gram.square().sum())
    assert abs(found - float((matrix - judge.fisher()).square().sum())) <= 1e-12 * largest


# --- K-FAC -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize("kind", KINDS)
def test_kfac_is_the_dense_product_of_the_factors(case: Case, judge: Truth, kind: str, approx: Any) -> None:
    found = dense_of("kfac", case.name, fisher_type=kind, kfac_approx=approx)
    assert near(found, oracles.kfac(judge.factors(kind), approx))


def forward_only(judge: Truth, approx: str) -> Tensor:
    """I (x) A."""
    blocks = []
    for groups in judge.factors().values():
        for part in groups:
            b, a = oracles.kfac_factors(part, approx)
            blocks.append(torch.kron(torch.eye(len(b), dtype=a.dtype), a))
    return torch.block_diag(*blocks)


@pytest.mark.parametrize("approx", ["expand", "reduce"])
def test_forward_only_kfac_has_the_identity_as_output_factor(case: Case, judge: Truth, approx: str) -> None:
    found = dense_of("kfac", case.name, fisher_type="forward-only", kfac_approx=approx)
    assert near(found, forward_only(judge, approx))


@pytest.mark.parametrize("name", ["mlp_tanh", "mlp_gaussian", "nasty_cnn", "tokens", "one_sample"])
def test_kfac_with_sampled_labels_keeps_the_input_factor(name: str) -> None:
    """F^ = B (x) A with the deterministic A, and B near the type-2 factor."""
    found = dense_of("kfac", name, fisher_type="mc", mc_samples=2000, seed=0)
    sizes = oracles.layer_sizes(truth(name).model)
    for block, groups in zip(oracles.diagonal_blocks(found, sizes), truth(name).factors().values(), strict=True):
        parts = oracles.diagonal_blocks(block, [len(block) // len(groups)] * len(groups))
        for part, group in zip(parts, groups, strict=True):
            b, a = oracles.kfac_factors(group)
            sampled, _ = oracles.partial_traces(part, len(b), len(a))
            assert near(part, torch.kron(sampled / a.trace(), a))
            assert near(sampled / a.trace(), b, 0.25)


RULES = ("exact", "factored", "pi")


@pytest.mark.parametrize("rule", RULES)
def test_damping_rules_are_the_dense_inverses(case: Case, judge: Truth, rule: str) -> None:
    """Dead factors have no trace ratio for pi; other tests hold that their steps are finite."""
    scale = float(cb.fit(cb.probe("kfac"), instance_of(case.name)).trace()) / judge.size
    damping = 0.1 * scale
    probe = cb.probe("kfac", damping=damping, damping_rule=rule)
    instance = instance_of(case.name)
    state = probe.refresh(probe.update(probe.init(instance), instance))
    vector = torch.randn(judge.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, start = probe.precondition(state, vector), 0
    for groups in judge.factors().values():
        for part in groups:
            b, a = oracles.kfac_factors(part)
            stop = start + len(a) * len(b)
            if rule != "pi" or min(float(a.trace()), float(b.trace())) > 0:
                expected = oracles.damped_kronecker_solve(b, a, vector[start:stop], damping, rule)
                assert near(found[start:stop], expected, 1e-9)
            start = stop


@pytest.mark.parametrize("rule", ["factored", "pi"])
@pytest.mark.parametrize("name", ["mlp_tanh", "conv1d"])
def test_factored_damping_dominates_exact_damping(name: str, rule: str) -> None:
    """The damped matrix is larger, so its inverse is smaller, by a positive semi-definite matrix."""
    instance, size = instance_of(name), truth(name).size

    def inverse(damping_rule: str) -> Tensor:
        probe = cb.probe("kfac", damping=1e-2, damping_rule=damping_rule)
        state = probe.refresh(probe.update(probe.init(instance), instance))
        return torch.stack([probe.precondition(state, e) for e in torch.eye(size, dtype=torch.float64)])

    difference = inverse("exact") - inverse(rule)
    eigenvalues = torch.linalg.eigvalsh(difference)
    assert float(eigenvalues[0]) >= -1e-12 * float(eigenvalues[-1])
    assert float(eigenvalues[-1]) > 0


def layer_cases() -> list[tuple[str, str]]:
    names = ("mlp_tanh", "mlp_relu_no_bias", "mlp_gaussian", "mlp_many_samples", "dead_unit")
    return [(name, layer) for name in names for layer in oracles.layer_slices(truth(name).model)]


@pytest.mark.parametrize(("name", "layer"), layer_cases())
def test_order_of_the_kronecker_family(name: str, layer: str) -> None:
    """In each layer KPSVD is the best Kronecker product, EKFAC is no worse than K-FAC, layer is exact."""
    judge = truth(name)
    part = oracles.layer_slices(judge.model)[layer]
    block, (group,) = judge.fisher()[part, part], judge.factors()[layer]
    b, a = oracles.kfac_factors(group)
    kfac = dense_of("kfac", name)[part, part]
    error = oracles.relative(kfac, block)
    best = oracles.kpsvd_block(block, len(b), len(a))
    tkfac = oracles.tkfac_block(block, len(b), len(a))
    ekfac = oracles.ekfac_block(block, b, a)
    assert oracles.relative(best, block) <= min(error, oracles.relative(tkfac, block)) + 1e-13
    assert oracles.relative(ekfac, block) <= error + 1e-13
    assert oracles.relative(dense_of("layer", name)[part, part], block) <= 1e-10
    assert float(ekfac.trace()) == pytest.approx(float(block.trace()), rel=1e-12)
    assert float(tkfac.trace()) == pytest.approx(float(block.trace()), rel=1e-12)
    assert float(kfac.norm()) == pytest.approx(float(b.norm() * a.norm()), rel=1e-12)


@pytest.mark.parametrize(("name", "layer"), layer_cases())
def test_trace_defect_of_kfac_is_a_covariance(name: str, layer: str) -> None:
    """tr(K-FAC) - tr(F_l) = -Cov(|a|^2, |g|^2)."""
    judge = truth(name)
    part, (group,) = oracles.layer_slices(judge.model)[layer], judge.factors()[layer]
    inputs = torch.stack([x.square().sum() for x in group.inputs])
    gradients = torch.zeros_like(inputs)
    for owner, gradient in zip(group.owner, group.gradients, strict=True):
        gradients[owner] += gradient.square().sum()
    covariance = (inputs * gradients).mean() - inputs.mean() * gradients.mean()
    kfac = cb.fit(cb.probe("kfac"), instance_of(name)).to_dense()[part, part]
    exact = judge.fisher()[part, part]
    assert float(kfac.trace() - exact.trace() + covariance) == pytest.approx(0, abs=1e-12 * float(exact.trace()))


@pytest.mark.parametrize("kind", ["type-2", "mc", "empirical"])
def test_kfac_is_exact_for_one_sample_with_one_score(kind: str) -> None:
    """K-FAC is exact in every layer of a fully connected network, for every Fisher type."""
    judge = truth("one_sample")
    found = dense_of("kfac", "one_sample", fisher_type=kind, seed=3)
    dense = cb.exact_fisher(instance_of("one_sample"), fisher_type=kind, seed=3).to_dense()
    assert near(found, oracles.keep(dense, oracles.layer_sizes(judge.model)))


def test_kfac_is_exact_for_a_deep_linear_network() -> None:
    """K-FAC is exact with the model's labels; the control: it is not with the data's labels."""
    judge = truth("linear_deep")
    sizes = oracles.layer_sizes(judge.model)
    blocks = oracles.keep(judge.fisher(), sizes)
    assert near(dense_of("kfac", "linear_deep"), blocks, 1e-12)
    assert oracles.relative(dense_of("kfac", "linear_deep", fisher_type="empirical"), blocks) > 0.05
    own = oracles.keep(judge.fisher("empirical"), sizes)
    assert oracles.relative(dense_of("kfac", "linear_deep", fisher_type="empirical"), own) > 0.05


def test_kfac_is_exact_for_the_last_layer_of_a_regression() -> None:
    """K-FAC is exact for the last layer; the control: it is not for the layers before."""
    judge = truth("mlp_gaussian")
    first, last = oracles.layer_slices(judge.model).values()
    found, dense = dense_of("kfac", "mlp_gaussian"), judge.fisher()
    assert near(found[last, last], dense[last, last], 1e-12)
    assert oracles.relative(found[first, first], dense[first, first]) > 0.05


@pytest.mark.parametrize(
    ("name", "right", "wrong"), [("linear_tokens", "expand", "reduce"), ("linear_pooled", "reduce", "expand")]
)
def test_each_approximation_is_exact_in_its_own_setting(name: str, right: str, wrong: str) -> None:
    """``expand`` is exact for a loss per position, ``reduce`` for a mean over positions; not vice versa."""
    blocks = oracles.keep(truth(name).fisher(), oracles.layer_sizes(truth(name).model))
    assert near(dense_of("kfac", name, kfac_approx=right), blocks, 1e-12)
    assert oracles.relative(dense_of("kfac", name, kfac_approx=wrong), blocks) > 0.05


def test_reduce_is_exact_for_a_convolution_and_a_global_mean() -> None:
    """``reduce`` is exact for a convolution whose outputs are averaged over all positions."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten()).double()
    inputs, targets = torch.randn(4, 2, 5, 5).double(), torch.randn(4, 3).double()
    instance = cb.Instance(model, inputs, targets, loss="gaussian")
    dense = oracles.type2_fisher(oracles.loss_terms(model, inputs, targets, "gaussian"), "gaussian")
    assert near(cb.fit(cb.probe("kfac", kfac_approx="reduce"), instance).to_dense(), dense, 1e-12)
    assert oracles.relative(cb.fit(cb.probe("kfac"), instance).to_dense(), dense) > 0.05


@pytest.mark.parametrize("name", ["mlp_gaussian", "tokens_gaussian", "padded_cnn", "linear_pooled"])
@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_scaling_the_residuals_scales_the_empirical_operators(name: str, factor: float) -> None:
    """Residuals times c multiply every score by c and every empirical matrix by c^2."""
    case = CASES[name]
    model, inputs, targets = case.build()
    outputs = model(inputs).detach()
    scaled = weights_of(model, inputs, outputs + factor * (targets - outputs), loss="gaussian")
    for probe in ("diag", "unit", "layer", "full", "kfac"):
        found = cb.fit(cb.probe(probe, fisher_type="empirical"), scaled).to_dense()
        assert near(found, factor**2 * dense_of(probe, name, fisher_type="empirical"), 1e-12), probe
        unchanged = cb.fit(cb.probe(probe), scaled).to_dense()
        assert near(unchanged, dense_of(probe, name), 1e-12), probe


def test_kfac_of_a_pooled_network_treats_positions_as_samples_would_not() -> None:
    """A control on the control: with one position, expand and reduce are one method."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), MeanPool(), nn.Linear(4, 2)).double()
    instance = cb.Instance(model, torch.randn(5, 1, 3).double(), torch.randint(2, (5,)))
    expand, reduce = (cb.fit(cb.probe("kfac", kfac_approx=a), instance).to_dense() for a in ("expand", "reduce"))
    assert near(expand, reduce, 1e-13)


# --- other coordinates -------------------------------------------------------------------------------------


class Affine(nn.Module):
    """A fixed map of a layer's input."""

    def __init__(self, matrix: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T + self.shift


def undamped_steps(name: str, damping: float) -> tuple[Tensor, Tensor]:
    """The step of a probe as it is, and in the coordinates a -> Omega a of both layers' inputs, brought back."""
    torch.manual_seed(5)
    widths, targets = (3, 3, 2), torch.randn(20, 2).double()
    weights = [torch.randn(m, d + 1).double() for d, m in itertools.pairwise(widths)]
    maps = [torch.eye(d + 1).double() + torch.randn(d + 1, d + 1).double() / 3 for d in widths[:-1]]
    for omega in maps:
        omega[-1] = torch.eye(len(omega))[-1]  # the constant 1 of the bias stays what it is
    x = torch.randn(20, 3).double()

    def step(omegas: list[Tensor]) -> list[Tensor]:
        modules: list[nn.Module] = []
        for weight, omega in zip(weights, omegas, strict=True):
            mapped, linear = weight @ torch.linalg.inv(omega), nn.Linear(weight.shape[1] - 1, len(weight)).double()
            linear.load_state_dict({"weight": mapped[:, :-1], "bias": mapped[:, -1]})
            modules += [Affine(omega[:-1, :-1], omega[:-1, -1]), linear, nn.Tanh()]
        instance = cb.Instance(nn.Sequential(*modules[:-1]), x, targets, loss="gaussian")
        probe = cb.probe(name, damping=damping)
        if name in ("layer", "full"):  # Woodbury needs a damping
            found = oracles.natural_gradient(cb.fit(probe, instance).to_dense(), instance.gradient(), damping)
        else:
            found = probe.precondition(probe.refresh(probe.fit(instance)), instance.gradient())
        return [
            part.reshape(w.shape) for part, w in zip(found.split([w.numel() for w in weights]), weights, strict=True)
        ]

    plain, mapped = step([torch.eye(len(m)).double() for m in maps]), step(maps)
    back = [delta @ omega for delta, omega in zip(mapped, maps, strict=True)]
    return torch.cat([v.flatten() for v in plain]), torch.cat([v.flatten() for v in back])


@pytest.mark.parametrize("name", ["kfac", "unit", "layer", "full"])
def test_undamped_steps_do_not_depend_on_the_coordinates_of_a_layers_input(name: str) -> None:
    """With the input a -> Omega a and the weights W -> W Omega^-1 the step is Delta Omega^-1."""
    plain, back = undamped_steps(name, 0.0)
    assert near(back, plain, 1e-9)


@pytest.mark.parametrize(("name", "damping"), [("kfac", 1e-2), ("full", 1e-2), ("diag", 0.0)])
def test_damped_ones_and_the_diagonal_do(name: str, damping: float) -> None:
    """The control: damping and the diagonal depend on the coordinates."""
    plain, back = undamped_steps(name, damping)
    assert oracles.relative(back, plain) > 0.05


# --- the digits MLP ----------------------------------------------------------------------------------------


def digits_mlp(activation: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = mlp(64, 20, 20, 20, 20, 10, activation=activation).double()
    images, labels = load_digits(return_X_y=True)
    return model, torch.tensor(images[:64] / 16.0), torch.tensor(labels[:64])


class Digits:
    """Instance, dense Fisher and dense K-FAC of the MLP 64-20-20-20-20-10 on 64 digits."""

    def __init__(self, activation: type[nn.Module]) -> None:
        model, inputs, targets = digits_mlp(activation)
        self.instance = cb.Instance(model, inputs, targets)
        self.fisher = cb.exact_fisher(self.instance)
        self.sizes = oracles.layer_sizes(model)
        terms = oracles.loss_terms(model, inputs, targets, "cross_entropy")
        self.dense = oracles.type2_fisher(terms, "cross_entropy")
        self.blocks = oracles.keep(self.dense, self.sizes)
        self.kfac = oracles.kfac(oracles.layer_factors(model, inputs, targets, "cross_entropy"))


@pytest.fixture(scope="module", params=[nn.ReLU, nn.Tanh])
def digits(request: pytest.FixtureRequest) -> Digits:
    return Digits(request.param)


def found_error(operator: Any, fisher: Any) -> float:
    return cb.errors(operator, fisher)["relative"]


def layer_block_error(digits: Digits, operator: Any) -> float:
    """Relative error against the layer blocks, put together from the public parts."""
    squares = truth_squares = 0.0
    for layer in digits.instance.layers:
        norm = float(digits.fisher.layer(layer.name).frobenius_norm())
        squares += (cb.errors(block_of(operator, layer), digits.fisher.layer(layer.name))["relative"] * norm) ** 2
        truth_squares += norm**2
    return (squares / truth_squares) ** 0.5


def block_of(operator: Any, layer: Layer) -> Any:
    return operator.block(layer.start, layer.start + layer.size)


def test_digits_kfac_against_the_network(digits: Digits) -> None:
    operator = cb.fit(cb.probe("kfac"), digits.instance)
    expected = oracles.relative(digits.kfac, digits.dense)
    assert abs(found_error(operator, digits.fisher) - expected) <= 1e-10
    assert near(operator.to_dense(), digits.kfac)


def test_digits_kfac_against_the_layer_blocks(digits: Digits) -> None:
    operator = cb.fit(cb.probe("kfac"), digits.instance)
    expected = oracles.relative(digits.kfac, digits.blocks)
    assert abs(layer_block_error(digits, operator) - expected) <= 1e-10


def test_digits_kfac_against_each_layer(digits: Digits) -> None:
    operator = cb.fit(cb.probe("kfac"), digits.instance)
    exact = oracles.diagonal_blocks(digits.dense, digits.sizes)
    approximate = oracles.diagonal_blocks(digits.kfac, digits.sizes)
    for layer, truth_block, block in zip(digits.instance.layers, exact, approximate, strict=True):
        found = found_error(block_of(operator, layer), digits.fisher.layer(layer.name))
        assert abs(found - oracles.relative(block, truth_block)) <= 1e-10


def test_digits_layer_has_no_error_against_the_layer_blocks(digits: Digits) -> None:
    operator = cb.fit(cb.probe("layer"), digits.instance)
    assert layer_block_error(digits, operator) <= 1e-7
    expected = oracles.relative(digits.blocks, digits.dense)
    assert abs(found_error(operator, digits.fisher) - expected) <= 1e-10
    assert expected > 0.3


def test_digits_full_has_no_error_against_the_network(digits: Digits) -> None:
    assert found_error(cb.fit(cb.probe("full"), digits.instance), digits.fisher) <= 1e-7
