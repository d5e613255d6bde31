"""The exact Fisher against dense matrices, on every case, Fisher type and order of contraction."""

from __future__ import annotations

import itertools
import math

import oracles
import pytest
import torch
from cases import CASES, Case, Truth, fisher_of, instance_of, truth, weights_of, whole_of
from judging import by_parameters
from torch import Tensor, nn

import curvbench as cb
from curvbench import operators

KINDS = ("type-2", "empirical")
ORDERS = (None, "direct", "kernel")


def assert_close(value: Tensor | float, expected: Tensor | float, tolerance: float = 1e-10) -> None:
    """Relative Frobenius distance; a NaN fails."""
    value, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (value, expected))
    assert value.shape == expected.shape
    scale = expected.abs().max().clamp(min=1e-300)
    error = ((value - expected) / scale).norm() / (expected / scale).norm().clamp(min=1e-300)
    assert error <= tolerance, f"relative error {error:.2e} > {tolerance:.0e}"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def dense(judge: Truth, kind: str) -> Tensor:
    return judge.fisher(kind)


@pytest.fixture(params=ORDERS)
def fisher(request: pytest.FixtureRequest, case: Case, kind: str):
    return fisher_of(case.name, kind, request.param)


@pytest.fixture
def vectors(case: Case, judge: Truth) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(judge.size, 3, dtype=torch.float64, generator=generator)


def test_matrix_and_its_numbers(fisher, dense: Tensor) -> None:
    assert fisher.shape == dense.shape
    assert_close(fisher.to_dense(), dense)
    assert_close(fisher.trace(), dense.trace())
    assert_close(fisher.frobenius_norm(), (dense / dense.abs().max()).norm() * dense.abs().max())
    assert_close(fisher.diagonal(), dense.diagonal())


def test_all_parameters_and_weights_alone(case: Case, kind: str) -> None:
    """Both have the same blocks of weights, first; with all parameters the Fisher is that of plain autograd."""
    whole, weights = whole_of(case.name), instance_of(case.name)
    dense = cb.exact_fisher(whole, kind).to_dense()
    assert weights.layers == whole.layers[: len(weights.layers)]
    assert_close(dense[: weights.size, : weights.size], fisher_of(case.name, kind).to_dense(), 1e-12)
    assert whole.coverage == 1 and not whole.left_out and not whole.coupled
    terms = oracles.batch_terms(whole.model, whole.inputs, whole.targets, case.loss)
    assert_close(by_parameters(whole, dense), oracles.fisher(terms, case.loss, kind))


def test_products(fisher, dense: Tensor, vectors: Tensor) -> None:
    assert_close(fisher.matvec(vectors[:, 0]), dense @ vectors[:, 0])
    assert_close(fisher.matmat(vectors), dense @ vectors)


def test_eigenvalues(fisher, dense: Tensor) -> None:
    k = min(6, len(dense))
    assert_close(fisher.eigenvalues(k), torch.linalg.eigvalsh(dense).flip(0)[:k].clamp(min=0))


def test_more_eigenvalues_than_the_gram_matrix_has_are_zero() -> None:
    values, dense = fisher_of("one_sample").eigenvalues(20), truth("one_sample").fisher()
    assert values.shape == (20,)
    assert_close(values[:2], torch.linalg.eigvalsh(dense).flip(0)[:2])
    assert float(values[2:].abs().max()) <= 1e-12 * float(values[0])


def test_gram_holds_every_pair_of_samples(case: Case, judge: Truth) -> None:
    """|G_nm|^2 = tr(F_n F_m) whatever factor of Lambda is used, so this sees the index r * N + n."""
    gram = fisher_of(case.name).gram()
    samples = len(case.build()[1])
    assert gram.dtype == torch.float64
    columns = len(gram) // samples
    blocks = gram.reshape(columns, samples, columns, samples).square().sum((0, 2)).sqrt()
    each = oracles.sample_fishers(judge.terms, case.loss, samples)
    scale = each.abs().max()
    expected = torch.einsum("nij,mij->nm", each / scale, each / scale).clamp(min=0).sqrt() * scale
    assert_close(blocks, expected)
    assert_close(gram, gram.T, 1e-14)
    assert_close(gram.trace() / len(judge.terms), judge.fisher().trace())


def test_gram_has_the_fewest_columns() -> None:
    assert fisher_of("mlp_tanh").gram().shape == (7 * 2, 7 * 2)
    assert fisher_of("mlp_tanh", "empirical").gram().shape == (7, 7)
    assert fisher_of("mlp_gaussian").gram().shape == (6 * 3, 6 * 3)


def test_layer_blocks(fisher, judge: Truth, dense: Tensor, vectors: Tensor) -> None:
    for name, part in oracles.layer_slices(judge.model).items():
        block, expected = fisher.layer(name), dense[part, part]
        assert_close(block.to_dense(), expected)
        assert_close(block.trace(), expected.trace())
        assert_close(block.frobenius_norm(), (expected / dense.abs().max()).norm() * dense.abs().max())
        assert_close(block.diagonal(), expected.diagonal())
        assert_close(block.matvec(vectors[part, 0]), expected @ vectors[part, 0])


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises((ValueError, KeyError), match="nowhere"):
        fisher_of("mlp_tanh").layer("nowhere")


def psd(size: int, *batch: int) -> Tensor:
    root = torch.randn(*batch, size, size, dtype=torch.float64)
    return root @ root.mT / size


def orthogonal(size: int, *batch: int) -> Tensor:
    return torch.linalg.qr(torch.randn(*batch, size, size, dtype=torch.float64)).Q


def per_layer(instance: cb.Instance, kind: str) -> list[operators.Operator]:
    blocks: list[operators.Operator] = []
    for layer in instance.layers:
        g, m, d = layer.shape
        if kind == "kronecker":
            blocks.append(operators.Kronecker(psd(m, g), psd(d, g)))
        elif kind == "rotated":
            entries = torch.rand(g, m, d, dtype=torch.float64)
            blocks.append(operators.RotatedDiagonal(orthogonal(m, g), orthogonal(d, g), entries))
        elif kind.startswith("sides"):
            sides = psd(m, g), psd(d, g)
            is_diagonal = [letter == "v" for letter in kind.removeprefix("sides_")]
            pairs = zip(sides, is_diagonal, strict=True)
            left, right = (side.diagonal(dim1=1, dim2=2) if cut else side for side, cut in pairs)
            blocks.append(operators.Kronecker(left, right, *is_diagonal))
        elif kind.startswith("bases"):
            left, right = (orthogonal(n, g) if q == "q" else None for q, n in zip(kind[-2:], (m, d), strict=True))
            blocks.append(operators.RotatedDiagonal(left, right, torch.rand(g, m, d, dtype=torch.float64)))
        elif kind == "units":
            blocks.append(operators.Dense(psd(d, g * m)))
        elif kind == "runs":
            order = next((n for n in range(2, d) if d % n == 0), d)
            blocks.append(operators.Dense(psd(order, layer.size // order)))
        else:
            blocks.append(operators.LowRank(torch.randn(layer.size, 2).double(), torch.rand(2).double(), 0.3))
    return blocks


@pytest.fixture(
    params=[
        *("identity", "diagonal", "low_rank", "dense", "kronecker", "rotated", "units", "runs", "low_ranks"),
        *("sides_dv", "sides_vd", "sides_vv", "bases_qi", "bases_iq", "bases_ii"),
        "subspace",
    ]
)
def other(request: pytest.FixtureRequest, case: Case) -> operators.Operator:
    instance, kind = instance_of(case.name), request.param
    size = sum(layer.size for layer in instance.layers)
    torch.manual_seed(11)
    if kind == "identity":
        return operators.Identity(size)
    if kind == "diagonal":
        return operators.Diagonal(torch.randn(size, dtype=torch.float64))
    if kind == "low_rank":
        return operators.LowRank(torch.randn(size, 4).double(), torch.rand(4).double(), 0.1)
    if kind == "dense":
        return operators.Dense(psd(size))
    if kind == "subspace":
        return operators.Subspace(orthogonal(size)[:, :4], torch.rand(4).double(), 0.5)
    return operators.BlockDiagonal(per_layer(instance, kind))


def test_inner_product_with_every_operator(case: Case, judge: Truth, other: operators.Operator, kind: str) -> None:
    dense, matrix = judge.fisher(kind), other.to_dense()
    # an inner product may cancel: the tolerance is relative to the product of the norms
    scale = float(dense.norm() * matrix.norm())
    for order in ORDERS:
        product = float(fisher_of(case.name, kind, order).inner(other))
        assert abs(product - float((dense * matrix).sum())) <= 1e-10 * scale


def test_inner_product_of_a_layer(case: Case, judge: Truth) -> None:
    torch.manual_seed(5)
    layers = instance_of(case.name).layers
    for layer, operator in zip(layers, per_layer(instance_of(case.name), "kronecker"), strict=True):
        part = oracles.layer_slices(judge.model)[layer.name]
        expected = (judge.fisher()[part, part] * operator.to_dense()).sum()
        product = float(fisher_of(case.name).layer(layer.name).inner(operator))
        scale = float(judge.fisher()[part, part].norm() * operator.to_dense().norm())
        assert abs(product - float(expected)) <= 1e-10 * scale


def test_inner_product_with_itself(fisher, dense: Tensor) -> None:
    if float(dense.norm()) > 1e-30:
        assert_close(fisher.inner(operators.Dense(dense)), dense.square().sum())


@pytest.mark.parametrize("relative_damping", [1e-8, 1e-6, 1e-4, 1e-2, 1.0])
def test_natural_gradient_and_solve(
    fisher, judge: Truth, dense: Tensor, vectors: Tensor, relative_damping: float
) -> None:
    """Steps are the dense solves. Errors grow with the condition number, those of the dense solve as well."""
    damping = relative_damping * float(torch.linalg.eigvalsh(dense)[-1])
    tolerance = max(1e-10, 1e-14 / relative_damping)
    gradient = judge.gradient
    step = fisher.natural_gradient(gradient, damping)
    assert_close(step, oracles.natural_gradient(dense, gradient, damping), tolerance)
    assert_close(
        fisher.solve(vectors[:, 0], damping), oracles.natural_gradient(dense, vectors[:, 0], damping), tolerance
    )


def test_natural_gradient_of_a_gradient_outside_the_range(fisher, dense: Tensor, vectors: Tensor) -> None:
    damping = 1e-3 * float(torch.linalg.eigvalsh(dense)[-1])
    assert_close(
        fisher.natural_gradient(vectors[:, 0], damping), oracles.natural_gradient(dense, vectors[:, 0], damping)
    )


def test_a_layer_solves_its_own_block(judge: Truth, case: Case, vectors: Tensor) -> None:
    for name, part in oracles.layer_slices(judge.model).items():
        dense = judge.fisher()[part, part]
        damping = 1e-3 * max(float(dense.trace()), 1e-30)
        solution = fisher_of(case.name).layer(name).solve(vectors[part, 0], damping)
        assert_close(solution, oracles.natural_gradient(dense, vectors[part, 0], damping))


def test_inverse(case: Case, judge: Truth, kind: str) -> None:
    """Every number of it against the dense inverse, with more and with fewer parameters than columns."""
    fisher, dense = fisher_of(case.name, kind), judge.fisher(kind)
    damping = 1e-2 * max(float(dense.diagonal().max()), 1e-3)
    eye = torch.eye(len(dense), dtype=torch.float64)
    found, expected = fisher.inverse(damping), torch.linalg.inv(dense + damping * eye)
    assert_close(found.to_dense(), expected)
    assert_close(found.trace(), expected.trace())
    assert_close(found.log_determinant(), torch.linalg.slogdet(expected).logabsdet)
    assert_close(found.frobenius_norm(), expected.norm())
    assert_close(found.diagonal(), expected.diagonal())
    values = torch.linalg.eigvalsh(expected).flip(0)
    assert_close(found.eigenvalues(len(values) + 1), values)
    assert_close(found.smallest_eigenvalue(), values[-1])
    for again in (0.0, 0.5):
        assert_close(found.solve(eye, again), torch.linalg.inv(expected + again * eye), 1e-9)
    for other in KINDS:
        assert_close(fisher_of(case.name, other).inner(found), (expected * judge.fisher(other)).sum())


@pytest.mark.parametrize("damping", [-1e-3, math.nan])
def test_damping_that_is_no_damping_is_refused(damping: float) -> None:
    fisher, gradient = fisher_of("mlp_tanh"), truth("mlp_tanh").gradient
    with pytest.raises(ValueError, match="damping"):
        fisher.natural_gradient(gradient, damping)
    with pytest.raises(ValueError, match="damping"):
        fisher.solve(gradient, damping)


@pytest.mark.parametrize("alias", ["type2", "exact"])
def test_aliases_of_type_2(alias: str) -> None:
    fisher = cb.exact_fisher(instance_of("mlp_tanh"), fisher_type=alias)
    assert torch.equal(fisher.gram(), cb.exact_fisher(instance_of("mlp_tanh")).gram())


@pytest.mark.parametrize("options", [{"fisher_type": "nonsense"}, {"fisher_type": "mc", "mc_samples": 0}])
def test_unknown_options_are_refused(options: dict) -> None:
    with pytest.raises(ValueError) as caught:
        cb.exact_fisher(instance_of("mlp_tanh"), **options)
    assert "\n" not in str(caught.value)


def test_never_forms_the_matrix() -> None:
    """1.2 million parameters, of which the dense matrix would take 11 TB."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1000, 1200, bias=False), nn.Tanh(), nn.Linear(1200, 3)).double()
    inputs, targets = torch.randn(4, 1000).double(), torch.tensor([0, 1, 2, 0])
    fisher = cb.exact_fisher(cb.Instance(model, inputs, targets))
    vector = torch.randn(fisher.shape[0], dtype=torch.float64)
    product = fisher.matvec(vector)
    assert_close(fisher.inner(operators.Identity(len(vector))), fisher.trace())
    assert_close(fisher.eigenvalues(8).square().sum().sqrt(), fisher.frobenius_norm())
    solved = fisher.solve(product + 0.1 * vector, 0.1)
    assert_close(solved, vector)


def test_few_parameters_need_no_gram_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are more columns than parameters, V V^T serves every number of the whole and of its layers."""
    judge, eye = truth("mlp_many_samples"), torch.eye(truth("mlp_many_samples").size, dtype=torch.float64)
    monkeypatch.setattr("curvbench.fisher.exact.gram", None)
    fisher, drawn = (cb.exact_fisher(instance_of("mlp_many_samples"), kind, 3) for kind in ("type-2", "mc"))
    expected, gradient = judge.fisher(), judge.gradient
    values, vectors = fisher.leading
    assert_close(expected @ vectors, vectors * values)
    assert_close(values, torch.linalg.eigvalsh(expected).flip(0)[: len(values)])
    assert_close(fisher.trace(), expected.trace())
    assert_close(fisher.frobenius_norm(), expected.norm())
    again = cb.exact_fisher(instance_of("mlp_many_samples"))
    again.restore(fisher.cache())
    for damping in (1e-2, 1e-7):
        inverse = torch.linalg.inv(expected + damping * eye)
        for one in (fisher, again):
            assert_close(one.natural_gradient(gradient, damping), inverse @ gradient, 1e-8)
            assert_close(one.natural_gradients(gradient, [damping, 1.0])[:, 0], inverse @ gradient, 1e-8)
            assert_close(one.inverse(damping).diagonal(), inverse.diagonal(), 1e-8)
            assert_close(drawn.inner(one.inverse(damping)), (drawn.to_dense() * inverse).sum(), 1e-8)
    assert_close(drawn.inner(fisher), (drawn.to_dense() * expected).sum())
    for la, part in zip(fisher.layers, oracles.layer_slices(judge.model).values(), strict=True):
        assert_close(again.layer(la.name).outer / fisher.terms, expected[part, part])
        assert_close(again.layer(la.name).eigenvalues(3), torch.linalg.eigvalsh(expected[part, part]).flip(0)[:3])


@pytest.fixture(scope="module")
def larger() -> tuple[cb.Instance, Tensor]:
    """A network whose Gram matrix needs several tiles, and sqrt(tr F_n F_m) for every pair of its samples."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(6, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 32, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).double()  # fmt: skip
    inputs, targets = torch.randn(32, 6, 11, 11).double(), torch.randint(10, (32,))
    terms = oracles.loss_terms(model, inputs, targets, "cross_entropy")
    rows = torch.stack([oracles.type2_rows(term, "cross_entropy") for term in terms]).flatten(0, 1)
    products = (rows @ rows.T).reshape(32, 45, 32, 45)
    return cb.Instance(model, inputs, targets), products.square().sum((1, 3)).sqrt()


@pytest.mark.parametrize("order", ORDERS)
def test_gram_of_several_tiles(larger: tuple[cb.Instance, Tensor], order: str | None) -> None:
    instance, expected = larger
    fisher = cb.exact_fisher(instance, contraction=order)
    assert_close(fisher.gram().reshape(9, 32, 9, 32).square().sum((0, 2)).sqrt(), expected)
    assert_close(fisher.frobenius_norm(), expected.norm() / 32)
    assert_close(fisher.inner(operators.Identity(fisher.shape[0])), fisher.trace())
    vector = torch.randn(fisher.shape[0], dtype=torch.float64)
    assert_close(fisher.solve(fisher.matvec(vector) + 1e-2 * vector, 1e-2), vector)


def test_float32_is_near_float64() -> None:
    model, inputs, targets = CASES["nasty_cnn"].build()
    fisher = cb.exact_fisher(weights_of(model.float(), inputs.float(), targets))
    assert fisher.gram().dtype == torch.float64
    assert_close(float(fisher.frobenius_norm()), truth("nasty_cnn").fisher().norm(), 1e-4)
    assert_close(fisher.to_dense().double(), truth("nasty_cnn").fisher(), 1e-4)


# --- Monte Carlo ------------------------------------------------------------------------------------------


def counts_of(matrix: Tensor, judge: Truth, samples: int) -> Tensor:
    """How often each label of each term was drawn, (terms, C), from the matrix alone: it is linear in them."""
    classes = len(judge.terms[0].output)
    scores = [oracles.score(term, c, judge.case.loss) for term in judge.terms for c in range(classes)]
    design = torch.stack([torch.outer(s, s).flatten() for s in scores], dim=1)
    coefficients = torch.linalg.lstsq(design, matrix.flatten() * samples * len(judge.terms), driver="gelsd").solution
    assert_close(design @ coefficients, matrix.flatten() * samples * len(judge.terms), 1e-8)
    return coefficients.reshape(len(judge.terms), classes)


@pytest.mark.parametrize("name", ["mlp_tanh", "conv1d", "dead_channel", "one_sample"])
@pytest.mark.parametrize("draws", [1, 5])
def test_mc_is_the_mean_over_whole_numbers_of_labels(name: str, draws: int) -> None:
    fisher = cb.exact_fisher(instance_of(name), fisher_type="mc", mc_samples=draws, seed=4)
    counts = counts_of(fisher.to_dense(), truth(name), draws)
    assert_close(counts, counts.round(), 1e-5)
    assert torch.equal(counts.round().sum(1), torch.full((len(counts),), float(draws)).double())
    assert (counts.round() >= 0).all()


def test_mc_labels_follow_the_model() -> None:
    judge, draws = truth("mlp_tanh"), 4000
    fisher = cb.exact_fisher(instance_of("mlp_tanh"), fisher_type="mc", mc_samples=draws, seed=1)
    counts = counts_of(fisher.to_dense(), judge, draws).round()
    expected = torch.stack([term.output.softmax(0) for term in judge.terms]) * draws
    statistic = float(((counts - expected).square() / expected).sum())
    freedom = len(counts) * 2
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)
    assert statistic > freedom - 5 * math.sqrt(2 * freedom)  # the drawn labels are not the expectation itself


@pytest.mark.parametrize("name", ["mlp_tanh", "mlp_gaussian", "tokens", "tokens_gaussian", "nasty_cnn"])
def test_mc_converges_to_type_2(name: str) -> None:
    """Error proportional to K^-1/2: a factor of 10 for 100 times the samples, more than 4 required."""
    errors = []
    for draws in (3, 300):
        distances = [
            oracles.relative(
                cb.exact_fisher(instance_of(name), fisher_type="mc", mc_samples=draws, seed=s).to_dense(),
                truth(name).fisher(),
            )
            for s in range(3)
        ]
        errors.append(sum(distances) / 3)
    assert errors[0] / errors[1] > 4
    assert errors[1] < 0.3


def test_mc_is_reproducible_and_leaves_the_global_generator_alone() -> None:
    def gram(seed: int) -> Tensor:
        return cb.exact_fisher(instance_of("nasty_cnn"), fisher_type="mc", mc_samples=3, seed=seed).gram()

    before = torch.get_rng_state()
    first, again, other = gram(7), gram(7), gram(8)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["nasty_cnn", "tokens", "mlp_gaussian", "certain"])
def test_mc_is_one_matrix_in_every_method(name: str, order: str | None) -> None:
    fisher = cb.exact_fisher(instance_of(name), fisher_type="mc", mc_samples=2, seed=3, contraction=order)
    dense = fisher.to_dense()
    vector = torch.randn(len(dense), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_close(dense, dense.T)
    assert_close(fisher.matvec(vector), dense @ vector)
    assert_close(fisher.trace(), dense.trace())
    assert_close(fisher.frobenius_norm(), dense.norm())
    assert_close(fisher.diagonal(), dense.diagonal())
    assert_close(fisher.eigenvalues(4), torch.linalg.eigvalsh(dense).flip(0)[:4].clamp(min=0))
    assert_close(fisher.inner(operators.Diagonal(vector)), dense.diagonal() @ vector)
    damping = 1e-3 * float(dense.trace())
    assert_close(fisher.solve(vector, damping), oracles.natural_gradient(dense, vector, damping))


def test_mc_draws_every_combination_of_labels() -> None:
    """With one draw the matrix is one of C outer products; over seeds all of them appear."""
    judge = truth("one_sample")
    candidates = [oracles.sampled_fisher(judge.terms, [[c]], "cross_entropy") for c in range(3)]
    seen = set()
    for seed in range(40):
        dense = cb.exact_fisher(instance_of("one_sample"), fisher_type="mc", seed=seed).to_dense()
        errors = [oracles.relative(dense, candidate) for candidate in candidates]
        assert min(errors) <= 1e-12
        seen.add(errors.index(min(errors)))
    assert seen == {0, 1, 2}


def test_mc_draws_the_labels_of_a_sequence_together() -> None:
    """Its scores are added up before the outer product: unbiased, because they are independent with mean zero."""
    model, inputs, targets = CASES["embedding"].build()
    instance = weights_of(model, inputs[:1], targets[:1])
    terms = oracles.loss_terms(model, inputs[:1], targets[:1], "cross_entropy")
    scores = [[oracles.score(term, c, "cross_entropy") for c in range(3)] for term in terms]
    sums = [sum(choice[1:], choice[0]) for choice in itertools.product(*scores)]
    candidates = [torch.outer(s, s) / len(terms) for s in sums]
    for seed in range(5):
        dense = cb.exact_fisher(instance, fisher_type="mc", seed=seed).to_dense()
        assert min(oracles.relative(dense, candidate) for candidate in candidates) <= 1e-12


def test_empirical_is_mc_with_the_data_as_labels() -> None:
    for name in ("mlp_tanh", "tokens"):
        judge = truth(name)
        labels = [[term.target for term in judge.terms]]
        assert_close(
            fisher_of(name, "empirical").to_dense(), oracles.sampled_fisher(judge.terms, labels, "cross_entropy")
        )


def test_gram_adds_up_over_layers() -> None:
    """The Gram matrix of the network is the sum of those of its layers."""
    for name in ("nasty_cnn", "tokens"):
        fisher = fisher_of(name)
        parts = [fisher.layer(layer.name).gram() for layer in instance_of(name).layers]
        assert_close(sum(parts[1:], parts[0]), fisher.gram())


class Bare:
    """Not one of ours: an object with the contract's methods."""

    shape = (len(truth("mlp_tanh").gradient),) * 2

    def matmat(self, V: torch.Tensor) -> torch.Tensor:
        return 2 * V

    def trace(self) -> float:
        return 2.0 * self.shape[0]

    def frobenius_norm(self) -> float:
        return 2.0 * self.shape[0] ** 0.5


def test_any_object_with_the_contracts_methods_is_compared() -> None:
    fisher = fisher_of("mlp_tanh")
    assert fisher.inner(Bare()) == pytest.approx(2 * fisher.trace(), rel=1e-12)
    assert cb.errors(Bare(), fisher)["trace_ratio"] == pytest.approx(2 * Bare.shape[0] / fisher.trace(), rel=1e-12)
