"""Other samples and later weights, from a cell to its rows: which samples, which weights, what is stored once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import oracles
import pandas as pd
import pytest
import torch
from fake_measure import Fake, Toy
from torch import Tensor, nn
from torch.nn import functional

import curvbench as cb
from curvbench import identity, training
from curvbench.cells import held, measure, reference
from curvbench.planning.selection import select
from curvbench.spec import Cell, Diverged, Drift, Preset, Training

PROBLEM = cb.problem("mlp", samples=12, hidden=3, depth=1)
DRIFT = Drift((0, 2, 30), start=3, lr=0.05, batch=64)
CELL = Cell(
    *("held", PROBLEM, cb.probe("kfac")),
    seed=1,
    dtype="float64",
    meters=("error", "direction", "flops", "population", "staleness"),
    population=20,
    drift=DRIFT,
)


def silent(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held") / "reference"
    measure.prepare(CELL, folder, None, silent)
    return folder


def rows_of(cell: Cell, folder: Path) -> pd.DataFrame:
    frame = pd.DataFrame([vars(row) for row in measure.measure(cell, folder, None, silent)])
    return frame.set_index(["metric", "scope"])


@pytest.fixture(scope="module")
def kfac(stored: Path) -> pd.DataFrame:
    return rows_of(CELL, stored)


# --- which samples -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("samples", [1, 100, 1000])
def test_no_sample_is_in_both_batches(seed: int, samples: int) -> None:
    problem = replace(PROBLEM, samples=samples)
    dataset = problem.data(None)
    numbered = replace(dataset, train_targets=torch.arange(len(dataset.train_inputs)))
    _, measured = training.batch(problem, numbered, seed)
    inputs, others = training.other_batch(problem, numbered, seed, 400)
    assert len(measured) == samples and len(others.unique()) == 400
    assert set(measured.tolist()).isdisjoint(others.tolist())
    assert torch.equal(inputs, dataset.train_inputs[others])


def test_every_size_is_held_against_the_same_samples() -> None:
    dataset = PROBLEM.data(None)
    batches = [training.other_batch(replace(PROBLEM, samples=n), dataset, 0, 50)[0] for n in (8, 128)]
    assert torch.equal(*batches)


def test_too_few_samples_are_refused_in_one_line() -> None:
    dataset = PROBLEM.data(None)
    with pytest.raises(ValueError, match=r"12 samples and 5000 others are more than the \d+ to train on$"):
        training.other_batch(PROBLEM, dataset, 0, 5000)


def test_drawn_labels_of_other_samples_are_other_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    monkeypatch.setattr(reference, "exact_fisher", lambda instance, kind, draws, seed, **_: seeds.append(seed))
    drawn: Any = replace(CELL, problem=cb.problem("resnet", depth=8, width=2, mc_samples=2, samples=4))
    for stream in (reference.STREAM, held.OTHER_STREAM):
        reference.fisher_of(drawn, None, stream)  # type: ignore[arg-type]
    assert len({seed % 2**32 for seed in seeds}) == 2


# --- which weights -----------------------------------------------------------------------------------------


def by_hand(model: nn.Module, seed: int, steps: int, momentum: float, lr: float, batch: int) -> Tensor:
    """The weights after some steps of SGD with momentum, written out."""
    dataset = PROBLEM.data(None)
    parameters = list(model.parameters())
    buffers = [torch.zeros_like(p) for p in parameters]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        done = 0
        while done < steps:
            order = torch.randperm(len(dataset.train_inputs))
            for rows in order.tensor_split(-(-len(order) // batch)):
                loss = functional.cross_entropy(model(dataset.train_inputs[rows].double()), dataset.train_targets[rows])
                gradients = torch.autograd.grad(loss, parameters)
                with torch.no_grad():
                    for p, m, g in zip(parameters, buffers, gradients, strict=True):
                        m.mul_(momentum).add_(g)
                        p.sub_(lr * m)
                done += 1
                if done == steps:
                    break
    return torch.cat([p.detach().flatten() for p in parameters])


@pytest.mark.parametrize("age", [0, 2, 30])
def test_the_weights_are_those_of_one_plain_training(age: int) -> None:
    model = training.snapshot(PROBLEM, 1, None, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = training.drifted(PROBLEM, model, DRIFT, 1, None)[age]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "the model stays"
    expected = by_hand(model, 1, DRIFT.start + age, DRIFT.momentum, DRIFT.lr, DRIFT.batch)
    found = torch.cat([weights[name].flatten() for name, _ in model.named_parameters()])
    assert float((found - expected).norm() / expected.norm()) <= 1e-12


def test_the_training_leaves_the_generator_alone_and_may_be_adam() -> None:
    model = training.snapshot(PROBLEM, 1, None)
    state = torch.get_rng_state()
    adam = training.drifted(PROBLEM, model, replace(DRIFT, optimizer="adam"), 1, None)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(adam) == {0, 2, 30} and not torch.equal(adam[2]["fc1.weight"], adam[0]["fc1.weight"])


def test_age_0_alone_trains_nothing() -> None:
    model = training.snapshot(PROBLEM, 1, None)
    (weights,) = training.drifted(PROBLEM, model, Drift((0,)), 1, None).values()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in weights.items())


def test_a_training_that_diverges_says_so() -> None:
    model = training.snapshot(PROBLEM, 1, None)
    with pytest.raises(Diverged, match=r"drift is too large|loss is"):
        training.drifted(PROBLEM, model, Drift((200,), lr=1e30), 1, None)


# --- rows --------------------------------------------------------------------------------------------------


def dense(cell: Cell, age: int, other: bool = False) -> tuple[Tensor, Tensor, nn.Module, tuple[Tensor, Tensor]]:
    """Fisher and gradient of the oracle at an age, with the model and the batch."""
    dataset = PROBLEM.data(None)
    model = training.snapshot(PROBLEM, cell.seed, None, dtype=torch.float64)
    model.load_state_dict(training.drifted(PROBLEM, model, DRIFT, cell.seed, None)[age])
    place = ("cpu", torch.float64)
    batch = training.batch(PROBLEM, dataset, cell.seed, *place)
    if other:
        batch = training.other_batch(PROBLEM, dataset, cell.seed, cell.population, *place)
    terms = oracles.loss_terms(model, *batch, "cross_entropy")
    fisher, gradient = oracles.type2_fisher(terms, "cross_entropy"), oracles.mean_gradient(terms, "cross_entropy")
    return fisher, gradient, model, batch


def quality(matrix: Tensor, gradient: Tensor, fisher: Tensor, damping: float) -> float:
    eye = torch.eye(len(fisher), dtype=torch.float64)
    step = torch.linalg.solve(matrix + damping * eye, gradient)
    best = gradient @ torch.linalg.solve(fisher + damping * eye, gradient)
    return float((gradient @ step) ** 2 / (step @ (fisher + damping * eye) @ step) / best)


def test_the_rows_of_a_cell_are_those_of_dense_matrices(kfac: pd.DataFrame) -> None:
    F_A, _, model, batch = dense(CELL, 0)
    F_B, g_B, *_ = dense(CELL, 0, other=True)
    F_k, g_k, *_ = dense(CELL, 30)
    matrix = oracles.kfac(oracles.layer_factors(model, *batch, "cross_entropy"))
    expected = {
        ("error.population", "network"): oracles.relative(matrix, F_B),
        ("error.floor", "network"): oracles.relative(F_A, F_B),
        ("direction.population", "network"): quality(matrix, g_B, F_B, CELL.damping),
        ("stale.error", "network, age 30"): oracles.relative(matrix, F_k),
        ("stale.floor", "network, age 30"): oracles.relative(F_A, F_k),
        ("stale.quality", "network, age 30"): quality(matrix, g_k, F_k, CELL.damping),
    }
    for place, value in expected.items():
        assert kfac.loc[place, "value"] == pytest.approx(value, rel=1e-6), place
    assert kfac.loc[("error.relative", "network"), "value"] == pytest.approx(oracles.relative(matrix, F_A), rel=1e-6)


def test_age_0_has_the_fresh_numbers(kfac: pd.DataFrame) -> None:
    values = kfac["value"]
    for scope in ("network", "layer blocks"):
        assert values["stale.error", f"{scope}, age 0"] == values["error.relative", scope]
        assert values["stale.quality", f"{scope}, age 0"] == pytest.approx(values["direction.quality", scope], rel=1e-9)
        assert values["stale.floor", f"{scope}, age 0"] == 0.0


def test_the_floor_is_that_of_every_probe_and_the_error_of_the_exact_fisher(kfac: pd.DataFrame, stored: Path) -> None:
    full = rows_of(replace(CELL, probe=cb.probe("full")), stored)["value"]
    for floor, error in (("error.floor", "error.population"), ("stale.floor", "stale.error")):
        ending = ", age 30" if floor.startswith("stale") else ""
        for scope in (f"network{ending}", f"layer blocks{ending}"):
            assert full[floor, scope] == kfac["value"][floor, scope] == pytest.approx(full[error, scope], rel=1e-7)


def test_rows_say_against_what(kfac: pd.DataFrame) -> None:
    fisher = "exact type-2 Fisher in float64 at step 3 of sgd at rate 0.05 with momentum 0.9 in batches of 64"
    assert kfac.loc[("error.relative", "network"), "method"] == fisher
    assert kfac.loc[("error.population", "network"), "method"] == f"{fisher}, of 20 other samples"
    assert kfac.loc[("direction.population", "network"), "method"].endswith("of 20 other samples, damping 0.001")
    assert kfac.loc[("stale.quality", "network, age 2"), "method"] == f"{fisher}, 2 steps later, damping 0.001"
    assert kfac.loc[("stale.quality", "network, age 2"), "step"] == 2
    assert kfac.loc[("stale.cost", "step, age 2"), "method"] == "refreshed every 2 steps"


def test_what_all_cells_share_is_computed_once(stored: Path) -> None:
    before = (stored / "held.pt").stat().st_mtime_ns
    said: list[str] = []
    measure.prepare(replace(CELL, probe=cb.probe("diag")), stored, None, said.append)
    assert not said and (stored / "held.pt").stat().st_mtime_ns == before


def test_cells_without_these_meters_store_nothing_more(tmp_path: Path) -> None:
    plain = replace(CELL, meters=("error",), population=0, drift=None)
    measure.prepare(plain, tmp_path, None, silent)
    assert {path.name for path in tmp_path.iterdir()} == {"reference.pt"}


@pytest.mark.parametrize("label", ["diag[fisher_type=mc]", "kfac[fisher_type=empirical]", "adam", "shampoo"])
def test_other_labels_and_methods_have_rows(label: str, stored: Path) -> None:
    frame = rows_of(replace(CELL, probe=cb.registry.parse_probe(label)), stored)
    assert frame.loc[("error.population", "network"), "value"] > 0
    assert frame.loc[("stale.error", "network, age 2"), "value"] > 0
    assert set(frame["status"]) <= {"ok", "unsupported"}


# --- settings ----------------------------------------------------------------------------------------------

MACHINE = {"torch_version": "2", "device_name": "a cpu"}


def test_each_setting_makes_another_cell_and_another_reference() -> None:
    plain = replace(CELL, meters=("error",), population=0, drift=None)
    assert identity.held_elsewhere(plain) == {}
    others = [CELL, replace(CELL, population=21), replace(CELL, drift=replace(DRIFT, lr=0.1)), plain]
    assert len({identity.cell_id(cell, MACHINE) for cell in others}) == len(others)
    assert len({reference.reference_identity(cell) for cell in others}) == len(others)


def test_a_preset_hands_its_settings_to_its_cells() -> None:
    preset = Preset([PROBLEM], [cb.probe("diag")], meters=CELL.meters, population=20, drift=DRIFT)
    (cell,) = select("held", preset)
    assert (cell.population, cell.drift) == (20, DRIFT)


def test_train_on_the_command_line_changes_the_drift() -> None:
    preset = Preset([PROBLEM], [cb.probe("diag")], meters=("staleness",), drift=DRIFT)
    (cell,) = select("held", preset, training="ages=0/5,lr=0.2,optimizer=adam")
    assert cell.drift == replace(DRIFT, ages=(0, 5), lr=0.2, optimizer="adam") and cell.training is None
    for text, words in (("epochs=3", "epochs"), ("ages=5/0", "ages must grow"), ("lr=x", "lr")):
        with pytest.raises(ValueError, match=words):
            select("held", preset, training=text)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"meters": ("population",)}, "the meter population and a number of samples go together"),
        ({"population": 20}, "the meter population and a number of samples go together"),
        ({"population": -1}, "the meter population and a number of samples go together"),
        ({"population": -1, "meters": ("population",)}, "the meter population and a number of samples go together"),
        ({"meters": ("staleness",)}, "the meter staleness and a drift go together"),
        ({"drift": DRIFT}, "the meter staleness and a drift go together"),
        (
            {"meters": ("staleness",), "drift": DRIFT, "training": Training(1, 0.1)},
            "population and drift are of cells that are measured",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Preset([Toy()], [Fake()], **settings)
    with pytest.raises(ValueError, match=words):
        Cell("s", Toy(), Fake(), 0, **settings)


def test_a_population_that_is_no_larger_is_refused() -> None:
    with pytest.raises(ValueError, match="the population needs more than the 12 samples of the statistics, got 12"):
        replace(CELL, population=12)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ages": ()}, "ages must grow"),
        ({"ages": (3, 1)}, "ages must grow"),
        ({"ages": (1, 1)}, "ages must grow"),
        ({"ages": (-1, 1)}, "ages must grow"),
        ({"start": -1}, "start >= 0"),
        ({"batch": 0}, "batch >= 1"),
        ({"lr": float("inf")}, "finite lr"),
        ({"momentum": 1.0}, "momentum < 1"),
        ({"optimizer": "lion"}, "optimizer"),
    ],
)
def test_a_drift_that_is_none_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Drift(**fields)
