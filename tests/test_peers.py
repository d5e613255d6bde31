"""The peers' adapters: converters on factors made by hand, the extra that is named, and the peers where they are."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import instance_of
from torch import Tensor

import curvbench as cb
from curvbench import registry
from curvbench.spec import Layer

FOLDER = Path(__file__).parent.parent / "suites" / "peers"
peers: Any = registry.load_file(FOLDER / "probes.py")
MISSING = [name for name in peers.DISTRIBUTIONS if importlib.util.find_spec(name) is None]
needs_peers = pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} not installed: the extra `peers`")
LAYER = Layer("fc", "linear", 1, outputs=3, inputs=5, bias=True, start=0)


def psd(order: int, seed: int) -> Tensor:
    root = torch.randn(order, order, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T


def entry(matrix: Tensor, row: tuple[int, int], column: tuple[int, int]) -> float:
    """Of a layer's dense matrix, by (output, input) of its rows and columns."""
    return float(matrix[row[0] * 5 + row[1], column[0] * 5 + column[1]])


def test_factors_come_input_first_and_leave_output_first() -> None:
    inputs, outputs = psd(5, 0), psd(3, 1)
    dense = peers.kronecker(LAYER, inputs, outputs).to_dense()
    assert abs(entry(dense, (2, 1), (0, 4)) - float(outputs[2, 0] * inputs[1, 4])) <= 1e-12


def test_a_bias_apart_has_no_products_with_the_weights_and_the_output_factor_as_its_block() -> None:
    inputs, outputs = psd(4, 0), psd(3, 1)
    dense = peers.kronecker(LAYER, inputs, outputs).to_dense()
    assert entry(dense, (1, 4), (1, 2)) == 0
    assert entry(dense, (1, 4), (2, 4)) == float(outputs[1, 2])
    assert abs(entry(dense, (1, 3), (2, 0)) - float(outputs[1, 2] * inputs[3, 0])) <= 1e-12


@pytest.mark.parametrize("apart", [False, True])
def test_eigenvalues_of_weight_and_bias_stand_at_their_own_vectors(apart: bool) -> None:
    input_basis, output_basis = torch.linalg.eigh(psd(4 if apart else 5, 2))[1], torch.linalg.eigh(psd(3, 3))[1]
    values = torch.arange(1.0, 16.0, dtype=torch.float64).view(3, 5)
    given = [values[:, :4], values[:, 4]] if apart else [values.flatten()]
    found = peers.rotated(LAYER, input_basis, output_basis, given)
    whole = torch.block_diag(input_basis, torch.ones(1, 1).double()) if apart else input_basis
    for m, d in ((0, 0), (2, 3), (1, 4)):
        vector = torch.kron(output_basis[:, m], whole[:, d])
        assert float((found.matvec(vector) - values[m, d] * vector).norm()) <= 1e-12


def test_scales_of_a_regression() -> None:
    assert [peers.scale("gaussian", kind, 10) for kind in ("type-2", "mc", "empirical")] == [0.2, 0.2, 0.4]
    assert peers.scale("cross_entropy", "empirical", 10) == 1


def test_the_package_does_not_list_them() -> None:
    assert not [probe for probe in cb.every_probe() if probe.name.startswith(("Curvlinops", "Nngeometry"))]


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in peers.DISTRIBUTIONS:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("name", ["CurvlinopsKfac", "CurvlinopsEkfac", "CurvlinopsGgn", "NngeometryKfac"])
@pytest.mark.usefixtures("nothing_installed")
def test_a_peer_that_is_not_installed_is_a_reason_that_names_the_extra(name: str) -> None:
    probe = registry.parse_probe(f"{FOLDER / 'probes.py'}:{name}")
    reason = probe.unsupported(instance_of("mlp_tanh"))
    assert reason is not None and "pip install -e '.[peers]'" in reason
    assert "\n" not in reason


@pytest.mark.skipif(not MISSING, reason="the peers are installed")
@pytest.mark.parametrize("script", ["conformance.py", "cost.py"])
def test_the_scripts_end_with_one_line_and_exit_code_2(script: str) -> None:
    done = subprocess.run([sys.executable, FOLDER / script], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "[peers]" in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.parametrize("preset", ["quick", "default", "resnet"])
def test_the_suite_loads_without_the_peers(preset: str) -> None:
    name, suite = registry.load_suite(FOLDER.parent / "peers")
    probes = suite.presets[preset].probes
    assert name == "peers" and {"kfac", "CurvlinopsKfac", "NngeometryEkfac"} <= {probe.name for probe in probes}
    assert all(registry.parse_probe(registry.selector(probe)) == probe for probe in probes)


@needs_peers
@pytest.mark.filterwarnings("ignore")  # the peers' own: deprecations, and conjugate gradients that stop early
def test_every_variant_agrees_once_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    conformance: Any = registry.load_file(FOLDER / "conformance.py")
    monkeypatch.setattr(conformance, "CASES", {name: conformance.CASES[name] for name in ("CNN",)})
    found = list(conformance.measured())
    assert len(found) > 30
    for row in found:
        basis_is_free = row.variant.startswith("CurvlinopsEkfac") and "reduce" in row.variant
        assert row.matrix <= (1e-7 if basis_is_free else 1e-12), row
        assert "Ggn" in row.variant or row.step <= (1e-6 if basis_is_free else 1e-11), row
        assert abs(row.raw - 1) <= 1e-6, row
