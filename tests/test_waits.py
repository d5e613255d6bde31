"""On a GPU a phase waits for its numbers once: where a wait per layer creeps in, these counts say so."""

from __future__ import annotations

import functools

import pytest
import torch
from waits import waits

import curvbench as cb

LAYERS = 20
# Statistics check that model and batch are as before, which takes two waits, and their own factorizations a third.
MOST = {"update": 3, "refresh": 1, "step": 1}
TRAINED = [
    *("sgdm", "adam", "adamw", "adafactor", "adafisher", "muon", "soap", "shampoo", "psgd", "kfac", "ekfac", "tkfac"),
    *("skfac", "tnt", "thor", "mbf", "unit", "ngplus", "ingd", "diag"),
]


@functools.cache
def deep() -> cb.Instance:
    torch.manual_seed(0)
    layers = [m for _ in range(LAYERS - 1) for m in (torch.nn.Linear(6, 6), torch.nn.Tanh())]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(6, 4)).double()
    return cb.Instance(model, torch.randn(8, 6).double(), torch.randint(4, (8,)), "cross_entropy")


@pytest.mark.parametrize("name", TRAINED)
def test_no_phase_waits_for_every_layer(name: str) -> None:
    probe, instance, found = cb.probe(name), deep(), {}
    gradient, state = instance.gradient(), probe.init(deep())
    with waits() as of_update:
        state = probe.update(state, instance)
    with waits() as of_refresh:
        state = probe.refresh(state)
    with waits() as of_step:
        probe.precondition(state, gradient)
    found = {"update": of_update.count, "refresh": of_refresh.count, "step": of_step.count}
    assert {phase: max(found[phase], most) for phase, most in MOST.items()} == MOST


def test_a_wait_per_layer_would_be_seen() -> None:
    with waits() as found:
        for matrix in [torch.eye(3)] * LAYERS:
            assert matrix.isfinite().all()
    assert found.count == LAYERS
