"""Shipped snapshots: there for every preset, the same bits everywhere, refused where they are not what they say."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_suites import PRESETS
from torch import nn

import curvbench as cb
from curvbench import identity, training
from curvbench.cells import measure, reference, shipped
from curvbench.cli.app import main
from curvbench.planning import plan
from curvbench.planning.fate import fates
from curvbench.planning.selection import select
from curvbench.problems.chain import Chain
from curvbench.problems.mlp import MLP
from curvbench.registry import problems
from curvbench.spec import Cell, Preset, Problem, Row, Status

TRAINED = MLP(epochs=2)
DATA = shipped.FOLDER


def silent(text: str) -> None:
    pass


def named(*presets: str) -> set[tuple[Problem, int]]:
    """What presets of these names measure after training."""
    chosen = [preset for (_, name), preset in PRESETS.items() if name in presets]
    problems = [(p, s) for preset in chosen for p in [*preset.problems, *dict(preset.pairs)] for s in preset.seeds]
    return {(problem, seed) for problem, seed in problems if problem.epochs > 0}


PLACES = sorted(named("default", "quick"), key=str)


def stored(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a file as the format's page has it: the header's length, the header, the bytes."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    kinds = {"F32": np.float32, "I64": np.int64}
    header.pop("__metadata__")
    return {
        name.removeprefix("weights."): np.frombuffer(body[slice(*it["data_offsets"])], kinds[it["dtype"]])
        .reshape(it["shape"])
        .copy()
        for name, it in header.items()
    }


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of snapshots that a test may spoil."""
    folder = tmp_path / "snapshots"
    shutil.copytree(DATA, folder)
    monkeypatch.setattr(shipped, "FOLDER", folder)
    return folder


def test_every_trained_network_of_a_default_is_shipped_and_no_other() -> None:
    assert len(PLACES) >= 7
    assert {shipped.path(*place) for place in PLACES} == set(DATA.iterdir())
    assert all(shipped.shipped(*place) for place in PLACES)
    assert sum(file.stat().st_size for file in DATA.iterdir()) < 4e6


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place[0].label}-{place[1]}")
def test_a_file_holds_the_network_and_tells_how_it_was_made(place: tuple[Problem, int]) -> None:
    problem, seed = place
    model = shipped.load(problem, seed, shipped.shipped(problem, seed), None)
    expected = stored(shipped.path(problem, seed))
    expected.pop("outputs")
    assert model.state_dict().keys() == expected.keys()
    assert all(np.array_equal(tensor.numpy(), expected[name]) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    told = shipped.told(problem, seed)
    assert told["recipe"] == shipped.recipe(problem, seed)
    assert {"words", "commit", "torch", "processor", "sha256"} <= told.keys()
    data = problem.data(None)
    loss, accuracy = training.evaluate(model, data.test_inputs, data.test_targets, problem.loss)
    assert float(told["test.loss"]) == pytest.approx(loss, rel=1e-4)
    assert float(told["test.accuracy"]) == pytest.approx(accuracy or 0.0, abs=1e-5)
    assert float(told["train.accuracy"]) > 0.5


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_reference_has_the_same_bits_on_any_number_of_threads(threads: int, tmp_path: Path) -> None:
    cell = measured(TRAINED, samples=6)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        reference.prepare(cell, tmp_path, None, silent)
        model, _ = reference.load_snapshot(cell, tmp_path)
    finally:
        torch.set_num_threads(before)
    expected = stored(shipped.path(TRAINED, 0))
    for name, tensor in model.state_dict().items():
        assert np.array_equal(tensor.numpy(), expected[name].astype(np.float64))


def measured(problem: Problem, dtype: str = "float64", retrain: bool = False, **fields: int) -> Cell:
    """The cell of a command that measures ``eigen``."""
    preset = Preset([replace(problem, **fields)], [cb.probe("eigen")], dtype=dtype, meters=("error",))  # type: ignore[type-var]
    (cell,) = select("s", preset, retrain=retrain)
    return cell


def low_rank_error(weights: dict[str, np.ndarray], inputs: np.ndarray, rank: int) -> float:
    """What a matrix of that rank leaves of the type-2 Fisher of a ReLU network, in float64 (Eckart and Young).

    Column (n, c) of A is the gradient of sqrt(p_c) (f_c - sum_k p_k f_k) for sample n, so that F = A A' / N.
    """
    columns = []
    layers = len(weights) // 2
    for image in inputs.reshape(len(inputs), -1).astype(np.float64):
        seen = [image]
        for k in range(1, layers + 1):
            z = weights[f"fc{k}.weight"].astype(np.float64) @ seen[-1] + weights[f"fc{k}.bias"]
            seen.append(np.maximum(z, 0) if k < layers else z)
        p = np.exp(seen[-1] - seen[-1].max())
        p /= p.sum()
        slopes = (np.eye(len(p)) - p[:, None]) * np.sqrt(p)  # d of column c in the outputs
        parts = []
        for k in range(layers, 0, -1):
            with_bias = np.append(seen[k - 1], 1.0)
            parts.append(np.einsum("mc,d->mdc", slopes, with_bias).reshape(-1, len(p)))
            if k > 1:
                slopes = weights[f"fc{k}.weight"].astype(np.float64).T @ slopes * (seen[k - 1] > 0)[:, None]
        columns.append(np.concatenate(parts))
    values = np.linalg.svd(np.concatenate(columns, axis=1), compute_uv=False) ** 2
    return float(np.linalg.norm(values[rank:]) / np.linalg.norm(values))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 5e-4)])
def test_eigen_on_the_shipped_network_is_eckart_and_youngs_number(dtype: str, tolerance: float, tmp_path: Path) -> None:
    """To three digits in float32, as in the untrained half of a table."""
    cell = measured(MLP(epochs=10), dtype, samples=24)
    assert cell.weights
    reference.prepare(cell, tmp_path, None, silent)
    found = relative(measure.measure(cell, tmp_path, None, silent))
    inputs, _ = training.batch(cell.problem, cell.problem.data(None), 0)
    expected = low_rank_error(stored(shipped.path(cell.problem, 0)), inputs.numpy(), rank=16)
    assert found.value == pytest.approx(expected, rel=tolerance)
    assert found.method.endswith("at shipped weights")


def relative(rows: list[Row]) -> Row:
    (row,) = [row for row in rows if row.metric == "error.relative" and row.scope == "network"]
    return row


OTHERS = [replace(TRAINED, epochs=3), replace(TRAINED, hidden=21), replace(TRAINED, activation="tanh")]


@pytest.mark.parametrize("other", OTHERS, ids=lambda problem: problem.label)
def test_what_decides_the_weights_decides_the_file(other: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    name = shipped.path(TRAINED, 0)
    assert shipped.path(other, 0) != name != shipped.path(TRAINED, 1)
    assert shipped.path(replace(TRAINED, samples=9), 0) == name
    monkeypatch.setattr(MLP, "recipe", replace(MLP.recipe, momentum=0.8))
    assert shipped.path(TRAINED, 0) != name
    assert not shipped.shipped(TRAINED, 0)


@pytest.mark.parametrize("kind", problems().values(), ids=list(problems()))
def test_what_is_measured_is_not_what_is_trained_on(kind: type[Problem]) -> None:
    try:
        sizes = [kind(samples=samples).data(None).train_inputs for samples in (2, 3)]  # type: ignore[call-arg]
    except cb.Skip as reason:
        pytest.skip(str(reason))
    assert all(isinstance(inputs, torch.Tensor) for inputs in sizes)
    assert torch.equal(*sizes) == ("samples" in kind.measured), kind  # type: ignore[arg-type]


def test_a_chain_is_trained_on_what_is_measured() -> None:
    assert shipped.recipe(Chain(epochs=1, samples=2), 0) != shipped.recipe(Chain(epochs=1, samples=3), 0)


def test_rows_of_shipped_and_of_own_weights_are_apart(tmp_path: Path) -> None:
    with_file, retrained = measured(TRAINED, samples=6), measured(TRAINED, samples=6, retrain=True)
    assert with_file.weights == shipped.shipped(TRAINED, 0) and retrained.weights == ""
    here = identity.environment()
    assert identity.cell_id(with_file, here) != identity.cell_id(retrained, here)
    assert reference.reference_identity(with_file) != reference.reference_identity(retrained)
    assert reference.method(retrained) == "exact type-2 Fisher in float64 at weights trained here"
    reference.prepare(retrained, tmp_path, None, silent)
    trained = training.snapshot(retrained.problem, 0, None).double().state_dict()
    stored = reference.load_snapshot(retrained, tmp_path)[0].state_dict()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in trained.items())


@pytest.mark.parametrize("problem", [MLP(), MLP(epochs=2, hidden=7), Chain(epochs=1)], ids=lambda p: p.label)
def test_other_networks_are_made_here(problem: Problem) -> None:
    cell = measured(problem)
    assert cell.weights == ""
    assert reference.method(cell).endswith("trained here") == (problem.epochs > 0)


def test_without_the_folder_networks_are_trained_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "not there")
    assert measured(TRAINED).weights == ""


def test_a_problem_of_the_same_name_that_is_not_the_packages_has_no_snapshot() -> None:
    @dataclass(frozen=True)
    class mlp(MLP):
        """As the package's, of another file."""

    assert shipped.path(mlp(epochs=2), 0) == shipped.path(TRAINED, 0)
    assert not shipped.shipped(mlp(epochs=2), 0)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


def pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 13216\n")


def of_another_seed(file: Path) -> None:
    shutil.copy(shipped.path(MLP(epochs=5), 1), file)


@pytest.mark.parametrize("spoil", [cut, empty, flip, pointer, of_another_seed], ids=lambda spoil: spoil.__name__)
def test_a_damaged_file_is_refused_in_one_line(
    spoil: Callable[[Path], None], elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(shipped.path(TRAINED, 0))
    arguments = ["run", str(DATA.parents[1] / "suites" / "mlp.py"), "-m", TRAINED.label, "--results", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--dry-run"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "snapshot mlp-epochs-2-seed-0-" in told and "git checkout data/snapshots" in told
    assert len(told.strip().splitlines()) == 1
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--dry-run", "--retrain"])
    assert ended.value.code == 0


def test_weights_that_were_replaced_after_the_plan_are_refused(elsewhere: Path, tmp_path: Path) -> None:
    cell = measured(TRAINED, samples=6)
    with pytest.raises(ValueError, match=r"not 00 as was planned; restore it .* or train anew with --retrain"):
        reference.prepare(replace(cell, weights="00"), tmp_path, None, silent)
    shipped.path(TRAINED, 0).unlink()
    with pytest.raises(ValueError, match=r"snapshot mlp-epochs-2-seed-0-.* cannot be used: "):
        reference.prepare(cell, tmp_path, None, silent)
    assert not any(tmp_path.glob("*.pt"))


def test_a_network_that_has_changed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other names, other shapes; and a function that is another one with the same names and shapes."""
    made, known = MLP.model, shipped.shipped(TRAINED, 0)

    def wide(self: MLP) -> nn.Module:
        return made(replace(self, hidden=21))

    def smooth(self: MLP) -> nn.Module:
        return made(replace(self, activation="tanh"))

    for changed, why in ((wide, "size mismatch"), (smooth, "outputs move by")):
        monkeypatch.setattr(MLP, "model", changed)
        with pytest.raises(ValueError, match=f"the network has changed: .*{why}") as caught:
            shipped.load(TRAINED, 0, known, None)
        assert "\n" not in str(caught.value)


def test_data_that_have_changed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data, known = TRAINED.data(None), shipped.shipped(TRAINED, 0)
    inputs = data.train_inputs
    assert isinstance(inputs, torch.Tensor)
    monkeypatch.setattr(MLP, "data", lambda self, root: replace(data, train_inputs=inputs.flip(0)))
    with pytest.raises(ValueError, match="the network has changed"):
        shipped.load(TRAINED, 0, known, None)


def test_the_loop_still_means_what_the_files_were_made_by() -> None:
    """Two epochs amplify rounding little. Where this fails, raise ``VERSION`` and make the snapshots anew."""
    as_shipped = parameters(shipped.load(TRAINED, 0, shipped.shipped(TRAINED, 0), None))
    assert (parameters(training.snapshot(TRAINED, 0, None)) - as_shipped).norm() <= 1e-2 * as_shipped.norm()
    assert (parameters(training.snapshot(TRAINED, 1, None)) - as_shipped).norm() > 0.1 * as_shipped.norm()


def parameters(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_what_is_saved_is_loaded(elsewhere: Path) -> None:
    problem = replace(TRAINED, hidden=5)
    model = training.snapshot(problem, 4, None)
    file = shipped.save(model, problem, 4, None, {"commit": "abc"})
    first = file.read_bytes()
    assert shipped.save(model, problem, 4, None, {"commit": "abc"}).read_bytes() == first
    again = shipped.load(problem, 4, shipped.shipped(problem, 4), None)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_loading_leaves_the_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    shipped.load(TRAINED, 0, shipped.shipped(TRAINED, 0), None)
    assert torch.equal(torch.rand(3), expected)


def test_status_says_what_became_of_the_weights(elsewhere: Path) -> None:
    cell = measured(TRAINED, samples=6)
    record = {"cells": [plan.describe("c", cell)]}
    file = shipped.path(TRAINED, 0)

    def why() -> str:
        (fate,) = fates(record, {"c": Status.OK}, {})
        return fate.why

    assert why() == "ok"
    shipped.save(training.snapshot(TRAINED, 1, None), TRAINED, 0, None, {})
    assert why() == "the shipped weights changed"
    cut(file)
    assert "cannot be used" in why()
    file.unlink()
    assert why() == "the shipped weights are gone"
