"""States of probes: packed for weights_only loading and unpacked the same, blended tensor by tensor."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from cases import instance_of
from torch import Tensor

import curvbench as cb
from curvbench import registry, states
from curvbench.fisher import collect
from curvbench.fisher.units import UnitFisher
from curvbench.parts.factors import Factored
from curvbench.spec import Unsupported


def stored(state: Any, module: str) -> Any:
    """Through a file, as a checkpoint goes."""
    file = io.BytesIO()
    torch.save(states.pack(state), file)
    file.seek(0)
    return states.unpack(torch.load(file, weights_only=True), module)


VARIANTS = [
    *((name, {}) for name in sorted(registry.probes())),
    ("fngd", {"stage": "shared", "key": "sample"}),
    ("cg", {"preconditioner": "ekfac", "warm": True}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_a_stored_state_solves_to_the_same_bits(name: str, options: dict[str, Any]) -> None:
    instance, probe = instance_of("nasty_cnn"), cb.probe(name, **options)
    state = probe.refresh(probe.update(probe.init(instance), instance))
    again = stored(state, type(probe).__module__)
    assert type(again) is type(state)
    gradient = instance.gradient()
    assert torch.equal(probe.precondition(again, gradient), probe.precondition(state, gradient))
    assert torch.equal(probe.operator(again).to_dense(), probe.operator(state).to_dense())
    updated, expected = (probe.refresh(probe.update(s, instance)) for s in (again, state))
    assert torch.equal(probe.precondition(updated, gradient), probe.precondition(expected, gradient))


class Pair(NamedTuple):
    first: Tensor
    others: list[Tensor]


@dataclass(frozen=True)
class Point:
    x: Tensor
    count: int


def test_weighted_sums_every_tensor_of_floats_and_keeps_the_make() -> None:
    parts = [
        {"a": Pair(torch.tensor(k), [torch.tensor([2 * k, 4.0]), torch.tensor(7)]), "b": (Point(torch.tensor(k), 1),)}
        for k in (1.0, 3.0)
    ]
    total = states.weighted(parts, [0.25, 0.75])
    assert total["a"].first == 2.5 and torch.equal(total["a"].others[0], torch.tensor([5.0, 4.0]))
    assert total["a"].others[1] == 7 and total["b"] == (Point(torch.tensor(2.5), 1),)


def test_blend_is_a_weighted_mean_of_every_tensor() -> None:
    old = {"a": Pair(torch.tensor(1.0), [torch.tensor([2.0, 4.0])]), "b": (Point(torch.tensor(8.0), 1),)}
    new = {"a": Pair(torch.tensor(3.0), [torch.tensor([6.0, 0.0])]), "b": (Point(torch.tensor(0.0), 2),)}
    average = states.blend(old, new, 0.25)
    assert average["a"] == Pair(torch.tensor(2.5), average["a"].others)
    assert average["a"].others[0].tolist() == [5.0, 1.0]
    assert (average["b"][0].x.item(), average["b"][0].count) == (2.0, 2)


@pytest.mark.parametrize("name", [name for name, kind in registry.probes().items() if kind.supports_ema])
def test_a_blended_state_represents_the_mean_of_linear_statistics(name: str) -> None:
    """Diagonals, blocks and products with a trace of 1 are linear in the statistics; others in each factor."""
    probe = cb.probe(name, **({"norm": "none"} if name == "adafisher" else {}))  # which is linear in each factor
    first, second = (probe.update(None, instance_of(case)) for case in ("mlp_tanh", "mlp_tanh"))
    assert torch.equal(
        probe.operator(states.blend(first, second, 0.0)).to_dense(), probe.operator(second).to_dense()
    ), "weight 0 forgets"
    blended = states.blend(first, scaled(second, 3.0), 0.5)
    dense, base = (probe.operator(s).to_dense() for s in (blended, first))
    factors = (
        2
        if (isinstance(first, Factored) and name not in ("tkfac", "tnt")) or name in ("adafisher", "eva", "thor")
        else 1
    )
    power = 4 if name == "eva" else factors  # its matrix is (g a)(g a)^T
    torch.testing.assert_close(dense, 2.0**power * base, rtol=1e-12, atol=1e-14)


def scaled(state: Any, factor: float) -> Any:
    """Every tensor of a state multiplied, by way of its packed form."""

    def walk(node: Any) -> Any:
        if isinstance(node, Tensor):
            return factor * node
        if isinstance(node, dict):
            return {key: walk(value) for key, value in node.items()}
        return type(node)(walk(part) for part in node) if isinstance(node, (list, tuple)) else node

    return states.unpack(walk(states.pack(state)), "")


def test_foreign_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="which this version does not know"):
        states.unpack({"class": "subprocess:Popen", "fields": {"args": ["true"]}}, "curvbench.probes.kfac")
    with pytest.raises(ValueError, match="which this version does not know"):
        states.unpack({"class": "curvbench.probes.kfac:NoSuchState", "fields": {}}, "curvbench.probes.kfac")


def test_what_cannot_be_stored_is_named() -> None:
    with pytest.raises(TypeError, match="a Generator inside a probe's state cannot be stored"):
        states.pack([torch.Generator()])


def test_a_part_that_is_no_statistic_is_not_averaged() -> None:
    """Blocks of units that are formed anew keep columns, of which there is no mean."""
    batch = instance_of("mlp_tanh")
    first = [UnitFisher(columns, batch.terms) for columns in collect(batch, "type-2")]
    with pytest.raises(Unsupported, match="has no running average: leave ema out"):
        states.blend(first, first, 0.5)
