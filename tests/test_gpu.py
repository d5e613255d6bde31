"""The same numbers on a GPU as on the CPU, in float64; skipped where there is none.

With ``--device cpu`` the same tests run where no GPU is, so that they are in order when there is one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from cases import CASES, instance_of, weights_of
from waits import waits

import curvbench as cb
from curvbench import every_probe
from curvbench.meters.cost import Stepper, cost_rows
from curvbench.meters.exact import exact_rows
from curvbench.spec import Probe

pytestmark = pytest.mark.gpu
OnDevice = Callable[[str], cb.Instance]


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return name


@pytest.fixture
def on_device(device: str) -> OnDevice:
    """A case of the table on the device."""

    def move(name: str) -> cb.Instance:
        host = instance_of(name)
        model = copy.deepcopy(host.model).to(device)
        assert isinstance(host.inputs, torch.Tensor)
        return weights_of(model, host.inputs.to(device), host.targets.to(device), host.loss)

    return move


def assert_same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-9) -> None:
    error = (found.cpu() - expected).norm() / expected.norm().clamp(min=1e-300)
    assert float(error) <= tolerance


@pytest.mark.parametrize("name", CASES)
def test_exact_fisher(name: str, on_device: OnDevice, device: str) -> None:
    moved, host = on_device(name), instance_of(name)
    found, expected = cb.exact_fisher(moved), cb.exact_fisher(host)
    assert found.gram().device.type == device
    assert_same(found.gram(), expected.gram())
    assert_same(found.diagonal(), expected.diagonal())
    assert_same(
        found.natural_gradient(moved.gradient(), 1e-2),
        expected.natural_gradient(host.gradient(), 1e-2),
        tolerance=1e-7,
    )


@pytest.mark.parametrize("name", ["nasty_cnn", "tokens"])
def test_streamed_columns(name: str, on_device: OnDevice) -> None:
    assert_same(cb.exact_fisher(on_device(name), memory=0).gram(), cb.exact_fisher(instance_of(name)).gram())


@pytest.mark.parametrize("probe", every_probe(), ids=lambda p: p.name)
@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn"])
def test_probe(probe: Probe, name: str, on_device: OnDevice) -> None:
    moved, host = on_device(name), instance_of(name)
    if probe.unsupported(host):
        pytest.skip(str(probe.unsupported(host)))
    states = [probe.refresh(probe.fit(instance)) for instance in (moved, host)]
    v = host.gradient()
    found, expected = (
        probe.precondition(state, v.to(i.device)) for state, i in zip(states, (moved, host), strict=True)
    )
    assert_same(found, expected, tolerance=1e-6)
    found, expected = (probe.operator(s).matvec(v.to(i.device)) for s, i in zip(states, (moved, host), strict=True))
    assert_same(found, expected, tolerance=1e-6)


@pytest.mark.parametrize("order", ["direct", "kernel"])
def test_the_gram_matrix_never_waits_for_the_host(order: str, on_device: OnDevice) -> None:
    fisher = cb.exact_fisher(on_device("nasty_cnn"), contraction=order)
    with waits() as found:
        _ = fisher.layer_grams
    assert found.count == 0


@pytest.mark.parametrize("name", ["adam", "kfac", "shampoo"])
def test_a_step_never_waits_for_the_host(name: str, on_device: OnDevice, device: str) -> None:
    """``tests/test_waits.py`` counts operations; CUDA itself names those that it waits for."""
    moved, probe = on_device("nasty_cnn"), cb.probe(name)
    state, gradient = probe.refresh(probe.fit(moved)), moved.gradient()
    with waits() as found:
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        try:
            probe.precondition(state, gradient)
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    assert found.count == 0


def test_meters_use_the_devices_clock_and_memory(on_device: OnDevice, device: str) -> None:
    rows = list(cost_rows(Stepper(cb.probe("kfac"), on_device("nasty_cnn"))))
    methods = {row.method for row in rows if row.metric == "memory.peak"}
    assert all(method.startswith("cuda max_memory_allocated") == (device == "cuda") for method in methods)
    assert all(value > 0 for row in rows if row.metric == "time.wall" for value in row.samples)
    exact = {(row.metric, row.scope): row.value for row in exact_rows(on_device("nasty_cnn"))}
    assert (exact["memory.peak", "total"] or 0) > 0
