"""Steps at many dampings from one fit, against a probe that is fitted, refreshed and applied at each of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from cases import fisher_of, instance_of, truth, whole_of
from torch import Tensor

import curvbench as cb
from curvbench import registry
from curvbench.fisher import exact_fisher
from curvbench.fisher.stream import Stream
from curvbench.meters.damping import GRID
from curvbench.meters.direction import with_damping
from curvbench.meters.grid import grid_steps, watched_fit
from curvbench.operators import Identity
from curvbench.registry import parse_probe
from curvbench.spec import Probe

MORE = (
    *("kfac[damping_rule=factored]", "kfac[damping_rule=pi]", "kfac[fisher_type=empirical]", "kfac[others=block]"),
    *("kfac[fisher_type=mc]", "full[fisher_type=mc]", "layer[fisher_type=mc]", "full[fisher_type=empirical]"),
    *("ekfac[others=unit]", "ekfac[basis_every=2]", "tkfac[damping_rule=exact]", "thor[split=2]", "hylo[variant=kis]"),
    *("hylo[variant=kid_public]", "ginger[update_form=printed]", "ginger[update_form=fix_a]", "mbf[conv=avg]"),
    *("cwngd[scaling=mean]", "cwngd[score_scale=divided_by_N]", "ginger[scope=per_tensor]", "ginger[bc=true]"),
)
HOLD_DAMPING = {"hylo[variant=kid_public]", "ginger[update_form=printed]", "ginger[update_form=fix_a]", "ingd"}
HOLD_DAMPING |= {"spring", "klkron"}
ASK_FOR_IT = {"cwngd", "cwngd[scaling=mean]", "cwngd[score_scale=divided_by_N]"}  # whether it is above zero
SOME = (GRID[0], GRID[3], GRID[5], GRID[10])


def small(probe: Probe) -> Probe:
    few: dict[str, Any] = {"updates": 3, "rank": 4, "iterations": 2000}
    return replace(probe, **{k: v for k, v in few.items() if isinstance(probe.hyperparameters.get(k), int)})


def damped_probes() -> list[Probe]:
    """Every registered probe with a damping, and variants that solve in other ways."""
    every = [probe for probe in registry.every_probe() if probe.damping is not None]
    return [small(probe) for probe in (*every, *map(parse_probe, MORE))]


def name_of(probe: Probe) -> str:
    plain = {"updates", "rank", "iterations"}
    arguments = [part for part in probe.arguments.split(",") if part.partition("=")[0] not in plain]
    return f"{probe.name}[{','.join(arguments)}]" if any(arguments) else probe.name


PROBES = damped_probes()


@cache
def rounding(damping: float, name: str) -> float:
    """What two ways to a step may differ by, relative to it: eps times P times the condition number."""
    largest = float(torch.linalg.eigvalsh(truth(name).fisher())[-1])
    return torch.finfo(torch.float64).eps * truth(name).size * (1 + largest / damping)


@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn"])
@pytest.mark.parametrize("probe", PROBES, ids=name_of)
def test_every_step_is_that_of_a_probe_with_this_damping(probe: Probe, name: str) -> None:
    instance = instance_of(name)
    gradient = instance.gradient()
    state, refits = watched_fit(probe, instance)
    found = grid_steps(probe, state, refits, instance, gradient, SOME)
    for damping, step in zip(SOME, found, strict=True):
        own = with_damping(probe, damping, instance.terms)
        expected = own.precondition(own.refresh(own.fit(instance)), gradient.clone())
        assert isinstance(step, Tensor), step
        assert float((step - expected).norm()) <= rounding(damping, name) * float(expected.norm())


@pytest.mark.parametrize("probe", PROBES, ids=name_of)
def test_a_state_that_does_not_hold_the_damping_is_known_as_such(probe: Probe) -> None:
    """The states at two dampings are equal for every probe whose fit does not read the damping."""
    instance = whole_of("embedding") if "kid" not in probe.label else instance_of("mlp_tanh")
    first, reads = watched_fit(probe, instance)
    assert reads == (name_of(probe) in HOLD_DAMPING | ASK_FOR_IT)
    second = with_damping(probe, 37.0, instance.terms).fit(instance)
    pairs = list(zip(tensors(first), tensors(second), strict=True))
    are_equal = all(torch.equal(a, b) for a, b in pairs)
    assert pairs and (are_equal or name_of(probe) in HOLD_DAMPING)


def tensors(value: Any) -> list[Tensor]:
    """The tensors of a state, in its own order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    elif hasattr(value, "__dataclass_fields__"):
        value = [getattr(value, name) for name in value.__dataclass_fields__]
    return [t for item in value for t in tensors(item)] if isinstance(value, list | tuple) else []


def test_a_fit_that_is_watched_is_the_same_fit() -> None:
    for name in ("kfac", "ginger", "cwngd"):
        probe, instance = small(cb.probe(name)), instance_of("mlp_tanh")
        state, _ = watched_fit(probe, instance)
        assert type(probe) is type(cb.probe(name))
        assert all(map(torch.equal, tensors(state), tensors(probe.fit(instance))))


@dataclass(frozen=True)
class Narrow(Probe):
    """A probe that takes some dampings only, and whose step is not finite at one."""

    damping: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.damping > 1:
            raise ValueError("damping must be at most 1")

    def update(self, state: Any, batch: cb.Instance) -> Any:
        return batch.size

    def precondition(self, state: Any, gradient: Tensor) -> Tensor:
        if self.damping < 1e-7:
            raise torch.linalg.LinAlgError("it is singular")
        return gradient / (0.0 if self.damping < 1e-4 else self.damping)

    def operator(self, state: Any) -> Identity:
        return Identity(state, torch.float64)


@dataclass(frozen=True, slots=True)
class Slotted(Probe):
    """A probe whose objects take no other class, and whose state holds its damping."""

    damping: float = 1e-3

    def update(self, state: Any, batch: cb.Instance) -> Any:
        return self.damping

    def precondition(self, state: Any, gradient: Tensor) -> Tensor:
        return gradient * state

    def operator(self, state: Any) -> Identity:
        raise NotImplementedError


def test_a_probe_that_cannot_be_watched_is_fitted_again() -> None:
    instance = instance_of("mlp_tanh")
    state, refits = watched_fit(Slotted(), instance)
    assert state == 1e-3 and refits
    found = grid_steps(Slotted(), state, refits, instance, instance.gradient(), SOME)
    for damping, step in zip(SOME, found, strict=True):
        assert isinstance(step, Tensor) and torch.equal(step, instance.gradient() * damping)


def test_factors_that_are_not_finite_have_a_reason_at_every_damping() -> None:
    instance, probe = instance_of("mlp_tanh"), cb.probe("kfac")
    state, refits = watched_fit(probe, instance)
    state.factors[0].left[0, 0, 0] = torch.nan
    found = grid_steps(probe, state, refits, instance, instance.gradient(), SOME)
    assert all(isinstance(step, str) and "NaN" in step for step in found)


def test_a_damping_without_a_step_has_a_reason() -> None:
    instance, probe = instance_of("mlp_tanh"), Narrow()
    state, refits = watched_fit(probe, instance)
    found = grid_steps(probe, state, refits, instance, instance.gradient(), GRID)
    assert not refits
    assert found[0] == "it is singular" and found[-1] == "damping must be at most 1"
    assert str(found[3]).startswith("the step is ") and "infinite" in str(found[3])
    assert [isinstance(step, Tensor) for step in found] == [False] * 4 + [True] * 5 + [False] * 2


def test_a_matrix_that_rounding_made_indefinite_has_the_steps_of_larger_dampings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    instance, probe = instance_of("mlp_tanh"), cb.probe("layer")
    state, refits = watched_fit(probe, instance)
    whole = state.blocks[1].factorize

    def refusing(damping: float) -> Tensor:
        if damping < 1e-6:
            raise ValueError("it is singular")
        return whole(damping)

    expected = grid_steps(probe, state, refits, instance, instance.gradient(), GRID)
    monkeypatch.setitem(state.blocks[1].__dict__, "factorize", refusing)
    found = grid_steps(probe, state, refits, instance, instance.gradient(), GRID)
    assert found[:2] == ["it is singular"] * 2
    for step, wanted in zip(found[2:], expected[2:], strict=True):
        assert isinstance(step, Tensor) and isinstance(wanted, Tensor)
        assert torch.allclose(step, wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["own", "other", "mc", "stream"])
def test_the_exact_fisher_solves_at_several_dampings_as_at_one(kind: str) -> None:
    instance = instance_of("mlp_tanh")
    fisher = fisher_of("mlp_tanh", "mc" if kind == "mc" else "type-2")
    if kind == "stream":
        fisher = exact_fisher(instance, memory=1)
        assert isinstance(fisher.columns, Stream)
    gradient = torch.randn_like(instance.gradient()) if kind == "other" else instance.gradient()
    for block, part in [(fisher, gradient), *((fisher.layer(la.name), gradient[la.slice]) for la in fisher.layers)]:
        found = block.natural_gradients(part, SOME)
        for damping, step in zip(SOME, found.unbind(1), strict=True):
            expected = block.natural_gradient(part, damping)
            assert float((step - expected).norm()) <= rounding(damping, "mlp_tanh") * float(expected.norm())
