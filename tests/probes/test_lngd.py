"""LNGD against dense Jacobians of one sample at a time, and the errata that change results."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from cases import CASES, Case, instance_of, truth
from torch import Tensor, nn

import curvbench as cb
from curvbench.fisher import collect
from curvbench.meters.cost import Stepper, flop_rows
from curvbench.parts import local_factors as local
from curvbench.parts.jacobian import local_map
from curvbench.parts.weighted import responses
from curvbench.spec import Unsupported

SOURCES = ("lg", "lg_mc", "mc", "empirical", "type-2")


def near(value: Tensor, expected: Tensor, tolerance: float = 1e-12) -> bool:
    scale = max(float(expected.abs().max()), 1e-300)
    return bool(((value - expected) / scale).norm() <= tolerance * (expected / scale).norm())


def sample_energies(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Sums of squares over the rows of the Jacobian of the next read input in each layer's output, row by row."""
    zeros: dict[str, Tensor] = {}
    reads: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def act(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            reads[name] = args[0].clone()
            zeros[name] = torch.zeros_like(output, requires_grad=True)
            return output + zeros[name]

        return act

    handles = [m.register_forward_hook(hook(n)) for n, m in oracles.covered_layers(model).items()]
    model(x.unsqueeze(0))
    for handle in handles:
        handle.remove()
    order, found = list(zeros), {}
    for i, name in enumerate(order):
        found[name] = torch.ones_like(zeros[name][0])
        for reader in order[i + 1 :]:
            if not reads[reader].requires_grad:
                continue
            numbers = reads[reader].flatten()
            rows = [torch.autograd.grad(v, zeros[name], retain_graph=True, allow_unused=True)[0] for v in numbers]
            if rows[0] is not None:
                found[name] = torch.stack(rows).square().sum(0)[0].detach()
                break
    return found


def local_factors(case: Case) -> dict[str, list[tuple[list[Tensor], list[Tensor]]]]:
    """Per layer and group: inputs (S, D) and energies (S, M) of every sample."""
    model, inputs, _ = case.build()
    energies = [sample_energies(model, x) for x in inputs]
    result = {}
    for name, layer in oracles.covered_layers(model).items():
        seen = [oracles.observe(model, x)[1][name] for x in inputs]
        result[name] = [
            (
                [oracles.positions(layer, x, g).detach() for x in seen],
                [oracles.group_gradient(layer, e[name], g) for e in energies],
            )
            for g in range(getattr(layer, "groups", 1))
        ]
    return result


def lngd_block(inputs: list[Tensor], energies: list[Tensor], terms: int, positions: str = "exact") -> Tensor:
    """diag(psi) (x) Phi by loops over samples and positions."""
    phi = torch.zeros(inputs[0].shape[1], inputs[0].shape[1], dtype=torch.float64)
    psi = torch.zeros(energies[0].shape[1], dtype=torch.float64)
    for x, e in zip(inputs, energies, strict=True):
        for a, g2 in zip(x, e, strict=True):
            weight = g2.sum() if positions == "exact" else e.sum(1).mean()
            phi += weight * torch.outer(a, a) / terms
            psi += a.dot(a) * g2
    psi = psi / psi.sum() if psi.sum() > 0 else torch.ones_like(psi) / len(psi)
    return torch.kron(torch.diag(psi), phi)


def true_block(inputs: list[Tensor], energies: list[Tensor], terms: int) -> Tensor:
    """The ``lg`` Fisher itself for local maps whose Jacobian is diagonal: sum over positions of diag (x) a a^T."""
    total = 0
    for x, e in zip(inputs, energies, strict=True):
        for a, g2 in zip(x, e, strict=True):
            total = total + torch.kron(torch.diag(g2), torch.outer(a, a)) / terms
    return total


def dense(name: str, **options: Any) -> Tensor:
    return cb.fit(cb.probe("lngd", **options), instance_of(name)).to_dense()


def blocks_of(name: str) -> list[tuple[list[Tensor], list[Tensor]]]:
    return [group for groups in local_factors(CASES[name]).values() for group in groups]


def test_closed_form_is_the_sum_over_jacobian_rows(case: Case) -> None:
    """Through activations, BatchNorm, pooling, LayerNorm and sums over positions."""
    terms = instance_of(case.name).terms
    expected = torch.block_diag(*[lngd_block(x, e, terms) for x, e in blocks_of(case.name)])
    assert near(dense(case.name), expected)


@pytest.mark.parametrize("name", ["nasty_cnn", "conv1d", "padded_cnn", "tokens", "embedding"])
def test_positions_of_a_sample_can_share_their_mean_weight(name: str) -> None:
    """``positions=mean``, biases, groups and lookups too; the option changes Phi, and psi not."""
    instance, blocks = instance_of(name), blocks_of(name)
    expected = torch.block_diag(*[lngd_block(x, e, instance.terms, "mean") for x, e in blocks])
    assert near(dense(name, positions="mean"), expected)
    assert oracles.relative(dense(name), expected) > 1e-3
    exact, mean = (cb.fit(cb.probe("lngd", positions=p), instance) for p in ("exact", "mean"))
    assert all(torch.equal(a.left, b.left) for a, b in zip(exact.blocks, mean.blocks, strict=True))


@pytest.mark.parametrize("name", ["nasty_cnn", "conv1d", "padded_cnn"])
def test_weighted_patches_come_in_tiles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples at a time, and a rest, give the factor of all; float32 has the digits of float64 but the last."""
    whole = dense(name)
    monkeypatch.setattr(local, "_samples_per_tile", lambda *_: 2)
    assert near(dense(name), whole, 1e-13)
    single = instance_of(name).to(torch.float32)
    assert near(cb.fit(cb.probe("lngd"), single).to_dense().double(), whole, 1e-6)


@pytest.mark.parametrize("name", ["nasty_cnn", "conv1d", "tokens", "linear_4d"])
def test_responses_in_float32_are_those_of_the_columns(name: str) -> None:
    """The layer rate's p^T F p by a forward product; in float64 the columns themselves are asked."""
    for columns in collect(instance_of(name), "empirical"):
        v = torch.randn(columns.layer.size).double()
        expected = columns.project(v[:, None])[..., 0]
        assert near(responses(columns.to(torch.float32), v).double(), expected, 1e-5)


@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn", "conv1d", "tokens"])
def test_traces_are_those_of_the_local_fisher(name: str) -> None:
    """tr F^ = tr F_lg per group in closed form, for Linear and convolution; psi sums to one."""
    instance = instance_of(name)
    state = cb.probe("lngd").fit(instance)
    traces = torch.cat([phi.diagonal(dim1=1, dim2=2).sum(1) for phi in state.phis])
    expected = torch.stack([true_block(x, e, instance.terms).trace() for x, e in blocks_of(name)])
    assert near(traces, expected, 1e-13)
    assert all(near(psi.sum(1), torch.ones(len(psi)).double(), 1e-13) for psi in state.psis)


@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn"])
def test_samples_converge_to_the_closed_form(name: str) -> None:
    """At the rate K^-1/2, and the sampled operator has its own draw's trace: psi still sums to one."""
    truth_lg = dense(name)

    def error(samples: int) -> float:
        found = [dense(name, fisher_type="lg_mc", mc_samples=samples, seed=s) for s in range(4)]
        return sum(oracles.relative(f, truth_lg) for f in found) / 4

    assert error(3) / error(300) > 4
    state = cb.probe("lngd", fisher_type="lg_mc").fit(instance_of(name))
    assert all(near(psi.sum(1), torch.ones(len(psi)).double(), 1e-13) for psi in state.psis)


def test_one_sample_is_exact() -> None:
    """The local Fisher of one sample is represented exactly; of several samples it is not."""
    expected = torch.block_diag(*[true_block(x, e, 1) for x, e in blocks_of("one_sample")])
    assert near(dense("one_sample"), expected, 1e-10)
    many = torch.block_diag(*[true_block(x, e, 7) for x, e in blocks_of("mlp_tanh")])
    assert oracles.relative(dense("mlp_tanh"), many) > 1e-2, "not exact for several samples"


def test_linear_activation_is_exact() -> None:
    """I / M (x) M E[a a^T] is the local Fisher itself, for any number of samples."""
    expected = torch.block_diag(*[true_block(x, e, 6) for x, e in blocks_of("linear_deep")])
    assert near(dense("linear_deep"), expected, 1e-13)


@pytest.mark.parametrize("kind", ["type-2", "empirical"])
@pytest.mark.parametrize("name", ["mlp_tanh", "mlp_relu_no_bias", "dead_unit"])
def test_back_propagated_gradients_give_tkfac_with_a_diagonal_output_factor(name: str, kind: str) -> None:
    """The factors are partial traces of the dense blocks, for layers without positions."""
    judge, blocks = truth(name), []
    for layer, block in zip(
        oracles.covered_layers(judge.model).values(),
        oracles.diagonal_blocks(judge.fisher(kind), oracles.layer_sizes(judge.model)),
        strict=True,
    ):
        rows = layer.weight.shape[0]
        left, right = oracles.partial_traces(block, rows, len(block) // rows)
        left = left / left.trace() if left.trace() > 0 else torch.eye(rows) / rows
        blocks.append(torch.kron(torch.diag(left.diagonal()), right))
    assert near(dense(name, fisher_type=kind), torch.block_diag(*blocks))


def test_sampled_labels_keep_the_trace_of_their_own_fisher() -> None:
    options = {"fisher_type": "mc", "mc_samples": 2, "seed": 3}
    layer = cb.fit(cb.probe("layer", **options), instance_of("mlp_tanh"))
    assert abs(dense("mlp_tanh", **options).trace() - layer.trace()) <= 1e-13 * layer.trace()


def test_the_local_fisher_knows_no_labels() -> None:
    """Other targets, or a loss in other units, change nothing."""
    model, inputs, targets = CASES["mlp_gaussian"].build()
    other = cb.Instance(model, inputs, 7 * targets - 1, loss="gaussian")
    assert torch.equal(cb.fit(cb.probe("lngd"), other).to_dense(), dense("mlp_gaussian"))


@pytest.mark.parametrize("source", ["lg", "lg_mc"])
@pytest.mark.parametrize("name", ["mlp_tanh", "mlp_relu_no_bias", "nasty_cnn", "embedding"])
def test_output_layer_can_have_the_fisher_of_the_likelihood(name: str, source: str) -> None:
    """Its block is that of back-propagated type-2 gradients; every other block is as before."""
    *rest, last = oracles.layer_slices(truth(name).model).values()
    options = {"fisher_type": source, "mc_samples": 3}
    found, local = dense(name, output="likelihood", **options), dense(name, **options)
    assert near(found[last, last], dense(name, fisher_type="type-2")[last, last])
    assert oracles.relative(found[last, last], local[last, last]) > 0.1
    assert all(torch.equal(found[part, part], local[part, part]) for part in rest)


@pytest.mark.parametrize("name", ["mlp_gaussian", "tokens_gaussian", "padded_cnn"])
def test_output_layer_of_a_regression_has_it_already(name: str) -> None:
    """Unit variance: the Fisher in the outputs is the identity."""
    assert near(dense(name, output="likelihood"), dense(name))


def test_elementwise_is_the_same_where_it_applies_and_says_where_not() -> None:
    probe = cb.probe("lngd", phi="elementwise")
    assert torch.equal(dense("mlp_tanh", phi="elementwise"), dense("mlp_tanh"))
    assert torch.equal(dense("padded_cnn", phi="elementwise"), dense("padded_cnn"))
    reason = probe.unsupported(instance_of("tokens"))
    assert reason is not None and "inner" in reason and "\n" not in reason
    with pytest.raises(Unsupported, match="several inputs"):
        cb.fit(probe, instance_of("tokens"))


class Twice(nn.Module):
    """Every number feeds two, whose derivatives are opposite."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, -x], 1)


@pytest.mark.parametrize(
    "between, one_to_one",
    [
        (nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), True),
        (nn.AdaptiveAvgPool2d(2), True),
        (nn.MaxPool2d(3, stride=1), False),
        (nn.AvgPool2d(3, stride=1), False),
        (nn.Sequential(nn.Flatten(2), nn.Softmax(-1), nn.Unflatten(2, (4, 4))), False),
        (Twice(), False),
    ],
)
def test_one_to_one_is_recognised(between: nn.Module, one_to_one: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), between, nn.Flatten(), nn.LazyLinear(3)).double()
    x = torch.randn(3, 1, 4, 4).double()
    model(x)
    instance = cb.Instance(model.eval(), x, torch.tensor([0, 1, 2]))
    tape = instance.tape()
    found = local_map(tape, 0)
    assert found is not None and found.is_one_to_one() == one_to_one
    expected = torch.stack([sample_energies(model, row)["0"] for row in x])
    assert near(found.energy(64), expected)
    if not one_to_one:
        drawn = torch.stack([found.energy(2, seed=s) for s in range(1000)]).mean(0)
        assert oracles.relative(drawn, expected) < 0.1
        assert oracles.relative(found.ones.square(), expected) > 0.1, "one product of ones is not enough"


class Mixed(nn.Module):
    """Numbers that feed two with derivatives whose sum has no other digits: equal, opposite, or one half the other."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.kind, self.inner, self.outer = kind, nn.Linear(3, width), nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        mixed = {
            "repeated": lambda: h.repeat(1, 2),
            "reversed": lambda: h + h.flip(1),
            "differences": lambda: h - h.roll(1, 1),
            "halves": lambda: torch.cat([h, -h / 2], 1),
        }
        return self.outer(mixed[self.kind]())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["repeated", "reversed", "differences", "halves"])
def test_a_layer_of_few_numbers_is_not_taken_for_one_to_one(kind: str, dtype: torch.dtype) -> None:
    for width in (2, 3, 4, 5):
        model, x = Mixed(width, kind).to(dtype), torch.randn(2, 3, dtype=dtype)
        model(x)
        found = local_map(cb.Instance(model, x, torch.tensor([0, 1])).tape(), 0)
        assert found is not None and not found.is_one_to_one(), width


def test_residual_branches_take_the_nearest_reader() -> None:
    """A layer that is skipped over, and two layers that read one sum."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            side = self.d(x)
            h = torch.tanh(self.a(x))
            return self.c(torch.tanh(self.b(h)) * 3 + side.sin())

    torch.manual_seed(0)
    model, x = Net().double(), torch.randn(5, 3).double()
    instance = cb.Instance(model, x, torch.arange(5) % 2)
    tape = instance.tape()
    roles = [use.role for call, use in tape.calls if call.is_matrix]
    maps = {name: local_map(tape, tape.used[name][0]) for name in roles}
    readers = {name: tape.calls[found.reader][1].role if found else None for name, found in maps.items()}
    assert readers == {"a": "b", "b": "c", "c": None, "d": "c"}
    expected = []
    for name, layer in oracles.covered_layers(model).items():
        energies = [sample_energies(model, row)[name].reshape(1, -1) for row in x]
        inputs = [oracles.positions(layer, oracles.observe(model, row)[1][name], 0) for row in x]
        expected.append(lngd_block(inputs, energies, 5))
    assert near(cb.fit(cb.probe("lngd"), instance).to_dense(), torch.block_diag(*expected))


# --- damping, running averages, layer-wise rate -------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn", "dead_channel"])
def test_step_is_the_inverse_of_both_damped_factors(name: str) -> None:
    instance, steps = instance_of(name), []
    state = cb.probe("lngd").refresh(cb.probe("lngd").fit(instance))
    gradient, start = instance.gradient(), 0
    for phis, psis in zip(state.phis, state.psis, strict=True):
        for phi, psi in zip(phis, psis, strict=True):
            d, m = len(phi), len(psi)
            right = phi + min(max(float(phi.trace()) / d, 1e-5), 1e-2) * torch.eye(d).double()
            left = torch.diag(psi) + min(max(1 / m, 1e-5), 1e-2) * torch.eye(m).double()
            steps.append(torch.linalg.solve(torch.kron(left, right), gradient[start : start + m * d]))
            start += m * d
    assert near(cb.probe("lngd").precondition(state, gradient), torch.cat(steps), 1e-9)


def test_damping_of_the_output_factor_ignores_the_data() -> None:
    """E-L16: tr psi = 1, so that it is the cap for up to 100 outputs and 1 / M above."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 150), nn.Tanh(), nn.Linear(150, 4)).double()
    for scale in (0.1, 10.0):
        instance = cb.Instance(model, scale * torch.randn(6, 3).double(), torch.arange(6) % 4)
        state = cb.probe("lngd").refresh(cb.probe("lngd").fit(instance))
        found = [1 / s - psi for s, psi in zip(state.scales, state.psis, strict=True)]
        for value, expected in zip(found, (1 / 150, 1e-2), strict=True):
            assert near(value, torch.full_like(value, expected), 1e-9)


def test_the_output_factor_has_the_order_of_the_outputs() -> None:
    """E-L1: with Psi of order D, as printed, there is no matrix of the layer's size."""
    state = cb.probe("lngd").fit(instance_of("mlp_tanh"))
    for layer, phi, psi in zip(instance_of("mlp_tanh").layers, state.phis, state.psis, strict=True):
        assert psi.shape == (1, layer.outputs) and phi.shape == (1, layer.inputs, layer.inputs)
        assert layer.size == psi.numel() * phi.shape[-1]
    assert any(layer.inputs**2 != layer.size for layer in instance_of("mlp_tanh").layers)


def growing() -> list[cb.Instance]:
    model, inputs, targets = CASES["mlp_relu_no_bias"].build()
    return [cb.Instance(model, 2.0**t * inputs, targets) for t in range(6)]


def test_running_average_weighs_the_old_value() -> None:
    """E-L5: Eq. 14 as printed weighs the new value by 0.95; the text means the old value. tr Psi stays 1."""

    def after(rule: str) -> Any:
        probe, state = cb.probe("lngd", ema_rule=rule), None
        for batch in growing():
            state = probe.update(state, batch)
        return state

    single = [cb.probe("lngd").fit(batch) for batch in growing()]
    expected = single[0].phis[1]
    for later in single[1:]:
        expected = 0.95 * expected + 0.05 * later.phis[1]
    assert near(after("corrected").phis[1], expected, 1e-13)
    assert oracles.relative(after("printed").phis[1], expected) > 5
    assert all(near(psi.sum(1), torch.ones(1).double(), 1e-13) for psi in after("corrected").psis)
    operator = cb.probe("lngd").operator(after("corrected"))
    assert abs(operator.trace() - sum(float(p.diagonal(dim1=1, dim2=2).sum()) for p in after("corrected").phis)) < 1e-9


@pytest.mark.parametrize("source", ["lg", "mc"])
@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn", "tokens"])
def test_layer_rate_minimizes_the_quadratic_model(name: str, source: str) -> None:
    """E-L6: the denominator is p^T F p with the empirical Fisher; the square of the mean, as printed, is not.

    With data labels whatever the step is made of: of local derivatives, or in the ablation LNGD-lr of gradients.
    """
    instance, gradient = instance_of(name), instance_of(name).gradient()

    def step(**options: Any) -> Tensor:
        probe = cb.probe("lngd", fisher_type=source, **options)
        return probe.precondition(probe.refresh(probe.fit(instance)), gradient)

    plain, mu = step(), 1e-8
    fisher = truth(name).fisher("empirical")
    expected, worse = [], []
    for part in oracles.layer_slices(truth(name).model).values():
        p, g, f = plain[part], gradient[part], fisher[part, part]
        expected.append(p * (p @ g) / (p @ f @ p + mu))
        worse.append(p * (p @ g) / ((p @ g) ** 2 / instance.terms + mu))
    assert near(step(layer_rate="corrected"), torch.cat(expected), 1e-9)
    assert near(step(layer_rate="printed"), torch.cat(worse), 1e-9)
    assert oracles.relative(step(layer_rate="printed"), torch.cat(expected)) > 0.1


@pytest.mark.parametrize("rate", ["corrected", "printed"])
def test_layer_rate_without_curvature_is_zero(rate: str) -> None:
    """A zero denominator: the layer does not move, and nothing is NaN."""
    instance = instance_of("one_hot")
    probe = cb.probe("lngd", layer_rate=rate, mu=0.0)
    state = probe.refresh(probe.fit(instance))
    step = probe.precondition(state, torch.zeros(instance.size).double())
    assert torch.equal(step, torch.zeros_like(step))
    assert bool(torch.isfinite(probe.precondition(state, instance.gradient())).all())


@pytest.mark.parametrize(
    "options", [{"nu1": 0.0}, {"nu1": 1.0}, {"nu2": float("inf")}, {"ema": 1.0}, {"mu": -1.0}, {"draws": 0}]
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        cb.probe("lngd", **options)


@pytest.mark.parametrize("kind", SOURCES)
def test_every_operation_is_counted(kind: str) -> None:
    for options in ({}, {"layer_rate": "corrected"}, {"output": "likelihood"}):
        for name in ("nasty_cnn", "tokens", "conv1d"):
            rows = flop_rows(Stepper(cb.probe("lngd", fisher_type=kind, **options), instance_of(name)))
            assert not [row.reason for row in rows if row.metric == "flops.uncounted_ops" and row.value]
