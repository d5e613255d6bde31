"""Every kind of parameter: K-FAC and its kin, Eva, LNGD and the exact parts against dense matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import kinds
import oracles
import pytest
import torch
from judging import near
from kinds import KINDS, Block, blocks, kind
from torch import Tensor, nn

import curvbench as cb
from curvbench import registry, states
from curvbench.meters.memory import peak_memory

Pair = tuple[Tensor, Tensor]


def dense(case: str, name: str, **options: Any) -> Tensor:
    return cb.fit(cb.probe(name, **options), kind(case)[3]).to_dense()


def diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal().diag()


def nearest(pairs: list[Pair]) -> Pair:
    """The Kronecker product nearest to a sum of products, by the SVD of the dense rearranged sum."""
    if len(pairs) == 1:
        return pairs[0]
    rearranged = sum(torch.outer(b.flatten(), a.flatten()) for b, a in pairs)
    u, s, v = torch.linalg.svd(rearranged)
    (b, a), sign = pairs[0], u[:, 0].reshape(pairs[0][0].shape).trace().sign()
    return s[0] * sign * u[:, 0].reshape(b.shape), sign * v[0].reshape(a.shape)


def by_roles(block: Block, factors: Callable[[oracles.Factors], Pair], upright: bool = False) -> Pair:
    """The nearest product of a block's roles; ``upright`` mistakes the orientation of the second one."""
    made = {turned: factors(part) for turned, part in block.roles.items()}
    return nearest([pair[::-1] if turned and not upright else pair for turned, pair in made.items()])


def one_hot(part: oracles.Factors) -> bool:
    return all(bool(((x == 0) | (x == 1)).all() and (x.sum(1) <= 1).all()) for x in part.inputs)


def kfac_factors(part: oracles.Factors, approx: str = "expand") -> Pair:
    b, a = oracles.kfac_factors(part, approx)  # type: ignore[arg-type]
    return b, diagonal(a) if one_hot(part) else a


def kfac(block: Block) -> Tensor:
    return torch.kron(*by_roles(block, kfac_factors))


def reduced(block: Block) -> Tensor:
    return torch.kron(*by_roles(block, lambda part: kfac_factors(part, "reduce")))


def cut(matrix: Tensor, rows: int) -> Tensor:
    place = torch.arange(len(matrix)) // rows
    return matrix * (place[:, None] == place)


def thor(block: Block) -> Tensor:
    return torch.kron(*by_roles(block, lambda part: tuple(cut(f, 2) for f in kfac_factors(part))))  # type: ignore


def tkfac_factors(part: oracles.Factors) -> Pair:
    left: Any = 0
    right: Any = 0
    for g, n in zip(part.gradients, part.owner, strict=True):
        for row, a in zip(g, part.inputs[n], strict=True):
            left = left + a.dot(a) * torch.outer(row, row) / part.terms
            right = right + row.dot(row) * torch.outer(a, a) / part.terms
    root = left.trace().sqrt() if left.trace() > 0 else 1.0
    return left / root, right / root


def tkfac(block: Block) -> Tensor:
    return torch.kron(*by_roles(block, tkfac_factors))


def eigenbasis(matrix: Tensor) -> Tensor:
    return torch.eye(len(matrix)).double() if near(matrix, diagonal(matrix)) else torch.linalg.eigh(matrix)[1]


def ekfac(block: Block) -> Tensor:
    basis = torch.kron(*(eigenbasis(factor).contiguous() for factor in by_roles(block, kfac_factors)))
    return basis @ diagonal(basis.T @ block.matrix @ basis) @ basis.T


def eva(block: Block) -> Tensor:
    if set(block.roles) != {False}:
        return torch.zeros_like(block.matrix)
    part = block.roles[False]
    g = torch.cat(part.gradients).sum(0) / (part.terms * len(part.inputs[0]))
    score = torch.outer(g, torch.stack(part.inputs).mean((0, 1))).flatten()
    return torch.outer(score, score)


def local_energies(calls: list[kinds.Call]) -> list[Tensor]:
    """Per call the sums of squares over the rows of the Jacobian of the next call's input that depends on it."""
    found = []
    for i, call in enumerate(calls):
        energy = torch.ones_like(call.zero)
        for reader in (c.rows for c in calls[i + 1 :] if c.rows.requires_grad):
            options = {"retain_graph": True, "allow_unused": True}
            rows = [torch.autograd.grad(v, call.zero, **options)[0] for v in reader.flatten()]
            if any(row is not None for row in rows):
                energy = sum(row.square() for row in rows if row is not None)  # type: ignore[assignment]
                break
        found.append(energy)
    return found


def lngd(case: str) -> list[Pair]:
    """diag(psi) and Phi of every block; empty where the paper is silent."""
    silent = [label for label, block in blocks(case).items() if set(block.roles) != {False}]
    sums: dict[str, Any] = {label: (0, 0) for label in KINDS[case][2]}
    terms = kind(case)[2].numel()
    for _, calls in kinds.passes(case):
        for call, energy in zip(calls, local_energies(calls), strict=True):
            if call.role[0] in silent:
                continue
            for a, g2 in zip(kinds.with_ones(call), energy, strict=True):
                psi, phi = sums[call.role[0]]
                sums[call.role[0]] = psi + a.dot(a) * g2, phi + g2.sum() * torch.outer(a, a) / terms
    return [
        tuple(torch.zeros(n, n).double() for n in block.shape)
        if label in silent
        else ((sums[label][0] / sums[label][0].sum()).diag(), sums[label][1])
        for label, block in blocks(case).items()
    ]


def unit(block: Block) -> Tensor:
    return oracles.keep(block.matrix, [block.shape[1]] * block.shape[0])


PROBES: list[tuple[str, dict[str, Any], Callable[[Block], Tensor]]] = [
    ("kfac", {}, kfac),
    ("kfac", {"kfac_approx": "reduce"}, reduced),
    ("ekfac", {}, ekfac),
    ("tkfac", {}, tkfac),
    ("thor", {}, kfac),
    ("thor", {"split": 2}, thor),
    ("skfac", {}, reduced),
]
OF_VECTORS: dict[str, Callable[[Block], Tensor]] = {
    "diagonal": lambda block: diagonal(block.matrix),
    "unit": unit,
    "block": lambda block: block.matrix,
}


def expected(
    case: str, of_product: Callable[[Block], Tensor], of_vector: Callable[[Block], Tensor], kind: str
) -> Tensor:
    found = blocks(case, kind).values()
    return torch.block_diag(*[of_product(block) if block.roles else of_vector(block) for block in found])


@pytest.mark.parametrize("fisher_type", ["type-2", "empirical"])
@pytest.mark.parametrize("case", KINDS)
def test_blocks_are_those_of_plain_autograd(case: str, fisher_type: str) -> None:
    """The judge against derivatives in the parameters themselves, and the exact probes against the judge."""
    instance = kind(case)[3]
    assert [layer.name for layer in instance.layers] == list(KINDS[case][2])
    judged = [block.matrix for block in blocks(case, fisher_type).values()]
    whole = cb.exact_fisher(instance, fisher_type=fisher_type).to_dense()
    assert near(torch.block_diag(*judged), oracles.keep(whole, [len(block) for block in judged]), 1e-12)
    assert near(dense(case, "diag", fisher_type=fisher_type), diagonal(torch.block_diag(*judged)), 1e-12)
    assert near(dense(case, "unit", fisher_type=fisher_type), expected(case, unit, unit, fisher_type), 1e-12)


@pytest.mark.parametrize("fisher_type", ["type-2", "empirical"])
@pytest.mark.parametrize("others", OF_VECTORS)
@pytest.mark.parametrize(
    ("name", "options", "oracle"), PROBES, ids=lambda value: getattr(value, "__name__", str(value))
)
@pytest.mark.parametrize("case", KINDS)
def test_kfac_and_its_kin(
    case: str, name: str, options: dict[str, Any], oracle: Callable[[Block], Tensor], others: str, fisher_type: str
) -> None:
    found = dense(case, name, **options, others=others, fisher_type=fisher_type)
    assert near(found, expected(case, oracle, OF_VECTORS[others], fisher_type), 1e-9)


def test_a_role_in_the_wrong_orientation_is_another_matrix() -> None:
    """The control, where both orientations have one shape."""
    block = blocks("tied_square")["e"]
    right, wrong = (torch.kron(*by_roles(block, kfac_factors, upright)) for upright in (False, True))
    assert oracles.relative(wrong, right) > 0.01
    assert near(cb.fit(cb.probe("kfac"), kind("tied_square")[3]).blocks[1].to_dense(), right)  # type: ignore[attr-defined]


@pytest.mark.parametrize("case", KINDS)
def test_eva(case: str) -> None:
    found = dense(case, "eva")
    assert near(found, expected(case, eva, lambda block: torch.zeros_like(block.matrix), "empirical"))


@pytest.mark.parametrize("case", KINDS)
def test_lngd(case: str) -> None:
    assert near(dense(case, "lngd"), torch.block_diag(*[torch.kron(*pair) for pair in lngd(case)]))


@pytest.mark.parametrize("name", ["eva", "hylo", "lngd"])
@pytest.mark.parametrize("case", ["tied", "normed"])
def test_silent_blocks_take_the_plain_gradient(case: str, name: str) -> None:
    instance, probe = kind(case)[3], cb.probe(name)
    step = probe.precondition(probe.refresh(probe.fit(instance)), instance.gradient())
    silent = {"hylo": ("tied",)}.get(name, ("tied", "vector"))
    for layer in instance.layers:
        is_plain = torch.equal(step[layer.slice], instance.gradient()[layer.slice])
        assert is_plain == (layer.kind in silent), layer.name


STEPS: list[tuple[str, dict[str, Any]]] = [
    *(("kfac", {"others": others, "damping_rule": rule}) for others in OF_VECTORS for rule in ("exact", "pi")),
    *((name, {"others": others}) for name in ("ekfac", "tkfac", "thor", "skfac", "tnt") for others in OF_VECTORS),
    ("ekfac", {"ema": 0.5}),
    *((name, {}) for name in ("diagpair", "eva", "hylo", "klkron", "kpsvd", "kronsum", "lngd", "mbf", "unit", "diag")),
    *((name, {}) for name in ("adafactor", "adafisher", "hutchinson", "ingd", "ngplus")),
]


@pytest.mark.parametrize(("name", "options"), STEPS, ids=str)
@pytest.mark.parametrize("case", KINDS)
def test_steps_invert_the_damped_matrix(case: str, name: str, options: dict[str, Any]) -> None:
    """After two updates, so that running averages count."""
    instance, probe = kind(case)[3], cb.probe(name, **({} if name == "lngd" else {"damping": 0.1}), **options)
    state = probe.refresh(probe.update(probe.update(probe.init(instance), instance), instance))
    vector = torch.randn(instance.size, dtype=torch.float64)
    step, damped = probe.precondition(state, vector), probe.damped(state)
    assert damped is not None
    assert near(damped.to_dense() @ step, vector, 1e-9)
    represented = probe.operator(state).to_dense()
    assert (options.get("damping_rule") == "exact") <= near(damped.to_dense(), represented + 0.1 * eye(instance.size))


def eye(order: int) -> Tensor:
    return torch.eye(order, dtype=torch.float64)


@pytest.mark.parametrize("name", ["kfac", "tkfac", "thor", "tnt"])
@pytest.mark.parametrize("case", ["tied", "embedded", "normed"])
def test_parts_of_a_batch_join_to_the_whole(case: str, name: str) -> None:
    """The mean of the parts' states is the state of the batch, of a tied block too."""
    (model, x, y, _), probe = kind(case), cb.probe(name, others="unit")
    parts = [probe.fit(cb.Instance(model, *half)) for half in ((x[:2], y[:2]), (x[2:], y[2:]))]
    shares = [2 / len(x), 1 - 2 / len(x)]
    assert near(probe.operator(states.weighted(parts, shares)).to_dense(), dense(case, name, others="unit"), 1e-12)


@pytest.mark.parametrize("name", [name for name, probe in registry.probes().items() if probe.role == "method"])
def test_words_that_no_sample_has_do_no_harm(name: str) -> None:
    """They have no gradient and no step, but the weight decay that is a part of AdamW's and Nystroem's small shift."""
    instance, probe = kind("embedded")[3], cb.probe(name)
    if (reason := probe.unsupported(instance)) is not None:
        pytest.skip(reason)
    state = probe.refresh(probe.fit(instance))
    step = probe.precondition(state, instance.gradient())
    (lookup,) = (layer for layer in instance.layers if layer.kind == "lookup")
    unseen = [word for word in range(9) if word == 1 or not (kind("embedded")[1] == word).any()]
    assert step.isfinite().all() and float(step.norm()) > 0
    largest = float(step[lookup.slice].reshape(4, 9)[:, unseen].abs().max()) / float(step.abs().max())
    rounding = {"adamw": 1.0, "nystrom": 1e-9, "soap": 1e-7}  # SOAP divides it by epsilon in a null space
    assert largest <= rounding.get(name, 1e-12)
    assert all(map(math.isfinite, cb.errors(probe.operator(state), cb.exact_fisher(instance)).values()))


@pytest.mark.parametrize("name", ["kfac", "ekfac", "tkfac", "thor", "skfac", "eva", "lngd", "adam", "diag"])
@pytest.mark.parametrize("is_tied", [False, True])
def test_a_large_vocabulary_has_no_matrix(name: str, is_tied: bool) -> None:
    """Of 20,000 words: the matrix would take 1.6 GB."""
    torch.manual_seed(0)
    model = kinds.Tied(20_000) if is_tied else nn.Sequential(nn.Embedding(20_000, 4), nn.Flatten(), nn.Linear(12, 3))
    words = torch.randint(20_000, (2, 3))
    instance = cb.Instance(model, words, words if is_tied else torch.tensor([0, 2]))
    options = {"fisher_type": "mc"} if name not in ("eva", "lngd", "adam") else {}

    def step() -> None:
        probe = cb.probe(name, **options)
        state = probe.refresh(probe.fit(instance))
        assert probe.precondition(state, instance.gradient()).isfinite().all()
        probe.operator(state).diagonal()

    assert peak_memory(step, "cpu")[0] < 1e8
