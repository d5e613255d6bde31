"""The same numbers on a GPU as on the CPU, in float64; skipped where there is none."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import CASES, instance_of

import curvbench as cb
from curvbench import every_probe
from curvbench.meters.cost import Stepper, cost_rows
from curvbench.meters.exact import exact_rows
from curvbench.spec import Probe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
DEVICE = "cuda"


def on_gpu(name: str) -> cb.Instance:
    host = instance_of(name)
    model = copy.deepcopy(host.model).to(DEVICE)
    assert isinstance(host.inputs, torch.Tensor)
    return cb.Instance(model, host.inputs.to(DEVICE), host.targets.to(DEVICE), host.loss)


def assert_same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-9) -> None:
    assert found.device.type == DEVICE
    error = (found.cpu() - expected).norm() / expected.norm().clamp(min=1e-300)
    assert float(error) <= tolerance


@pytest.mark.parametrize("name", CASES)
def test_exact_fisher(name: str) -> None:
    device, host = on_gpu(name), instance_of(name)
    found, expected = cb.exact_fisher(device), cb.exact_fisher(host)
    assert_same(found.gram(), expected.gram())
    assert_same(found.diagonal(), expected.diagonal())
    assert_same(
        found.natural_gradient(device.gradient(), 1e-2),
        expected.natural_gradient(host.gradient(), 1e-2),
        tolerance=1e-7,
    )


@pytest.mark.parametrize("name", ["nasty_cnn", "tokens"])
def test_streamed_columns(name: str) -> None:
    assert_same(cb.exact_fisher(on_gpu(name), memory=0).gram(), cb.exact_fisher(instance_of(name)).gram())


@pytest.mark.parametrize("probe", every_probe(), ids=lambda p: p.name)
@pytest.mark.parametrize("name", ["mlp_tanh", "nasty_cnn"])
def test_probe(probe: Probe, name: str) -> None:
    device, host = on_gpu(name), instance_of(name)
    if probe.unsupported(host):
        pytest.skip(str(probe.unsupported(host)))
    states = [probe.refresh(probe.fit(instance)) for instance in (device, host)]
    v = host.gradient()
    found, expected = (
        probe.precondition(state, v.to(i.device)) for state, i in zip(states, (device, host), strict=True)
    )
    assert_same(found, expected, tolerance=1e-6)
    found, expected = (probe.operator(s).matvec(v.to(i.device)) for s, i in zip(states, (device, host), strict=True))
    assert_same(found, expected, tolerance=1e-6)


@pytest.mark.parametrize("order", ["direct", "kernel"])
def test_the_gram_matrix_never_waits_for_the_host(order: str) -> None:
    fisher = cb.exact_fisher(on_gpu("nasty_cnn"), contraction=order)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        _ = fisher.layer_grams
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_meters_use_the_devices_clock_and_memory() -> None:
    rows = list(cost_rows(Stepper(cb.probe("kfac"), on_gpu("nasty_cnn"))))
    assert {row.method for row in rows if row.metric == "memory.peak"} == {"cuda max_memory_allocated"}
    assert all(value > 0 for row in rows if row.metric == "time.wall" for value in row.samples)
    exact = {(row.metric, row.scope): row.value for row in exact_rows(on_gpu("nasty_cnn"))}
    assert (exact["memory.peak", "total"] or 0) > 0
