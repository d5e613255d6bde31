"""The damping's curve against dense matrices, losses of a model that is moved by hand, and planted curves."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import oracles
import pytest
import torch
from cases import CASES, fisher_of, instance_of, mlp, truth
from torch import Tensor, nn
from torch.nn import functional

import curvbench as cb
from curvbench.cells.measure import Fitted, grid_rows
from curvbench.fisher import exact_fisher
from curvbench.meters.damping import (
    GRID,
    TABLE,
    TARGETS,
    Curve,
    Descent,
    Targets,
    damping_rows,
    plateau,
    profiles_of,
    qualities_of,
    scope_of,
    targets_of,
)
from curvbench.meters.direction import judge, step_of, with_damping
from curvbench.spec import METERS, PROBED, Row, Status

NAMES = ("mlp_tanh", "nasty_cnn", "mlp_gaussian")
EPS = torch.finfo(torch.float64).eps


def steps_of(name: str, count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    gradient = instance_of(name).gradient()
    random = [torch.randn(len(gradient), dtype=gradient.dtype, generator=generator) for _ in range(count - 2)]
    return [gradient, step_of(cb.probe("kfac"), instance_of(name), gradient), *random]


def share(p: Tensor, g: Tensor, C: Tensor) -> float:
    best = float(g @ torch.linalg.solve(C, g))
    return math.copysign(float(g @ p) ** 2 / (float(p @ C @ p) * best), float(g @ p))


@pytest.mark.parametrize("name", NAMES)
def test_qualities_are_those_of_dense_matrices(name: str) -> None:
    F, g, sizes = truth(name).fisher(), truth(name).gradient, oracles.layer_sizes(truth(name).model)
    fisher, gradient = fisher_of(name), instance_of(name).gradient()
    targets = targets_of(fisher, gradient, 1e-2)
    steps = steps_of(name)
    profiles = profiles_of(lambda la: torch.stack([p[la.slice] for p in steps], dim=1), fisher, gradient)
    found = qualities_of(profiles, targets)
    ends = torch.tensor(sizes).cumsum(0).tolist()
    places = [slice(None), *(slice(end - size, end) for end, size in zip(ends, sizes, strict=True))]
    for t, factor in enumerate(TARGETS):
        damping = factor * 1e-2
        C = F + damping * torch.eye(len(F)).double()
        blocks = oracles.keep(F, sizes) + damping * torch.eye(len(F)).double()
        slack = EPS * len(F) * float(torch.linalg.matrix_norm(C, 2)) / damping
        for s, place in enumerate(places):
            metric = C if s == 0 else blocks[place, place]
            expected = [share(p[place], g[place], metric) for p in steps]
            assert found[t, :, s].tolist() == pytest.approx(expected, rel=slack)
            assert float(targets.least[t, s]) == pytest.approx(share(g[place], g[place], metric), rel=slack)
            most = share(torch.linalg.solve(blocks, g), g, C) if s == 0 else 1.0
            assert float(targets.most[t, s]) == pytest.approx(most, rel=slack)


def test_at_the_table_the_quality_is_that_of_the_direction() -> None:
    fisher, gradient = fisher_of("nasty_cnn"), instance_of("nasty_cnn").gradient()
    for step in steps_of("nasty_cnn"):
        expected = [scope.values["quality"] for scope in judge(step, fisher, gradient, 1e-3)]
        profiles = profiles_of(lambda la, p=step: p[la.slice][:, None], fisher, gradient)
        found = qualities_of(profiles, targets_of(fisher, gradient, 1e-3))[TABLE, 0].tolist()
        assert found == pytest.approx([expected[0], *expected[2:]], rel=1e-9)


class Situation:
    """A network, two batches, and the loss of the second one after a step, by a copy of the network."""

    def __init__(self) -> None:
        self.model = mlp(4, 6, 3).double()
        inputs = torch.randn(30, 4).double()
        targets = inputs[:, :3].argmax(1)  # the second batch has the labels of the first one's rule
        self.first, self.second = (inputs[:15], targets[:15]), (inputs[15:], targets[15:])
        self.instance = cb.Instance(self.model, *self.first)
        self.fisher = exact_fisher(self.instance)
        self.gradient = self.instance.gradient()
        self.targets = targets_of(self.fisher, self.gradient, 1e-2)
        self.descent = Descent(self.instance.elsewhere(*self.second).loss_along, "a second batch", EPS)

    def loss(self, step: Tensor) -> float:
        moved = copy.deepcopy(self.model)
        with torch.no_grad():
            for name, change in self.instance.unpack(step).items():
                moved.get_parameter(name).sub_(change)
            return float(functional.cross_entropy(moved(self.second[0]), self.second[1]))

    def scanned(self, step: Tensor) -> float:
        """The largest decrease over many lengths of a step."""
        fisher, g = self.fisher, self.gradient
        length = float(g @ step) / (fisher.quadratic(step) + 1e-2 * float(step @ step))
        before = self.loss(0 * step)
        return max(before - self.loss(2 ** (k / 20) * length * step) for k in range(-200, 200))

    def rows(self, probe: cb.Probe) -> dict[tuple[str, str], Row]:
        fitted = Fitted.of(probe, self.instance, True)
        return {(r.metric, r.scope): r for r in grid_rows(fitted, self.fisher, self.targets, self.descent)}


@pytest.mark.parametrize("name", ["kfac", "diag", "cwngd", "layer"])
def test_the_decrease_is_the_largest_that_a_moved_network_shows(name: str) -> None:
    place, probe = Situation(), cb.probe(name)
    rows = place.rows(probe)
    scanned = []
    for damping in GRID:
        step = step_of(with_damping(probe, damping, place.instance.terms), place.instance, place.gradient)
        found = rows["damping.decrease", scope_of(damping)].value
        assert found is not None
        scanned.append(place.scanned(step))
        assert 0.98 * scanned[-1] <= found <= scanned[-1] * 1.001
    best = rows["damping.best", "network"].value
    assert best in GRID and scanned[GRID.index(best)] >= 0.98 * max(scanned)
    assert rows["damping.decrease", "network"].value == rows["damping.decrease", scope_of(best)].value
    qualities = [rows["damping.quality", scope_of(damping)].value or -1.0 for damping in GRID]
    assert rows["damping.quality", "network"].value == max(qualities)


def test_the_quality_of_each_damping_is_that_of_its_step_at_three_targets() -> None:
    place, probe = Situation(), cb.probe("kfac")
    rows = place.rows(probe)
    for damping in GRID[2:]:
        step = step_of(with_damping(probe, damping, 15), place.instance, place.gradient)
        for target, scope in ((1e-4, " target=1e-04"), (1e-2, ""), (1.0, " target=1e+00")):
            expected = judge(step, place.fisher, place.gradient, target)[0].values["quality"]
            row = rows["damping.quality", scope_of(damping) + scope]
            assert row.value == pytest.approx(expected, rel=1e-8) and f"target's damping {target:g}" in row.method


def test_every_layer_has_its_best_damping_by_quality() -> None:
    place, probe = Situation(), cb.probe("kfac")
    rows = place.rows(probe)
    for k, layer in enumerate(place.fisher.layers):
        values = []
        for damping in GRID:
            step = step_of(with_damping(probe, damping, 15), place.instance, place.gradient)
            values.append(judge(step, place.fisher, place.gradient, 1e-2)[2 + k].values)
        best = max(range(len(GRID)), key=lambda i: values[i]["quality"])
        assert rows["damping.best", layer.name].value == GRID[best]
        for metric in ("quality", "gap_closed"):
            found = rows[f"damping.{metric}", layer.name].value
            assert found == pytest.approx(values[best][metric], rel=1e-6)
        width = plateau([v["quality"] for v in values], best)
        assert rows["damping.plateau", layer.name].value == pytest.approx(width, rel=1e-6)
        assert ("damping.decrease", layer.name) not in rows


def test_the_exact_layer_blocks_are_best_at_the_damping_of_the_target() -> None:
    rows = Situation().rows(cb.probe("layer"))
    for scope in ("0", "2"):
        assert rows["damping.best", scope].value == 1e-2
        assert rows["damping.quality", scope].value == pytest.approx(1.0, rel=1e-9)
        assert rows["damping.gap_closed", scope].value == pytest.approx(1.0, rel=1e-9)


PLANTED = (
    ([0, 0, 1, 0, 0], 2, 0.1),  # 0.05 of a decade on either side
    ([0, 1, 1, 1, 0], 1, 2.1),
    ([1, 0.97, 0.96, 0.96], 0, 3.0),  # up to the end of the grid
    ([1, 0.90, 1], 0, 0.5),  # contiguous: what lies behind a valley does not count
    ([0.5, 2, math.nan, 2], 1, 0.1 / 1.5),  # a missing value ends it
    ([math.nan, 3, math.nan], 1, 0.0),
    ([0.96, 1, 0.95], 1, 2.0),  # 95 % is enough
    ([-4, 1, 0.5], 1, 0.05 / 5 + 0.05 / 0.5),
)


@pytest.mark.parametrize(("values", "best", "width"), PLANTED)
def test_the_width_of_planted_plateaus(values: Sequence[float], best: int, width: float) -> None:
    assert plateau(values, best) == pytest.approx(width, rel=1e-12)


def test_a_planted_curve_has_its_best_damping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps along the gradient whose loss is planted: it falls by a number of each step's own."""
    place = Situation()
    planted = [0.0, 0.1, 0.2, 0.95, 1.0, 0.96, 0.5, 0.2, 0.1, 0.0, -1.0]
    quadratic = torch.tensor(planted, dtype=torch.float64)
    found = Curve(quadratic.clamp_min(0), torch.full((3, 11, 3), 0.5, dtype=torch.float64))
    monkeypatch.setattr("curvbench.meters.damping.curve", lambda *args: found)
    rows = {(r.metric, r.scope): r for r in damping_rows([place.gradient] * 11, *judges(place))}
    assert rows["damping.best", "network"].value == 1e-4
    assert rows["damping.plateau", "network"].value == pytest.approx(1 + 1 + 0.01 / 0.46, rel=1e-12)
    assert rows["damping.decrease", "network"].value == 1.0
    assert rows["damping.best", "0"].value == 1e-8 and rows["damping.plateau", "0"].value == 10.0


def judges(place: Situation) -> tuple[cb.ExactFisher, Tensor, Targets, Descent]:
    return place.fisher, place.gradient, place.targets, place.descent


def test_what_has_no_best_damping_has_a_reason() -> None:
    place = Situation()
    fisher, gradient, targets, descent = judges(place)

    def reason(steps: Sequence[Tensor | str], g: Tensor = gradient, d: Descent = descent) -> str:
        row = next(iter(damping_rows(steps, fisher, g, targets, d)))
        assert (row.metric, row.scope, row.status, row.value) == ("damping.best", "network", Status.SKIPPED, None)
        return row.reason

    assert reason(["it is singular"] * 11) == "no damping of the grid gives a step: it is singular"
    assert reason([gradient] * 11, 0 * gradient).startswith("the gradient is zero")
    assert "fall" in reason([-gradient] * 11)
    assert "fall" in reason([0 * gradient] * 11)
    nowhere = descent._replace(loss=lambda step: lambda length: math.nan)
    assert reason([gradient] * 11, d=nowhere).endswith("is not finite")


def test_rows_of_dampings_without_a_step_say_why() -> None:
    place = Situation()
    steps = ["it is singular", 0 * place.gradient, *[place.gradient] * 9]
    rows = {(r.metric, r.scope): r for r in damping_rows(steps, *judges(place))}
    assert rows["damping.decrease", "damping=1e-08"].reason == "it is singular"
    assert rows["damping.decrease", "damping=1e-07"].reason.startswith("the step is zero")
    assert rows["damping.best", "network"].value == 1e-6
    assert all(row.status in (Status.OK, Status.SKIPPED) for row in rows.values())


def test_a_probe_without_a_damping_has_no_rows() -> None:
    assert not Situation().rows(cb.probe("adam"))


def test_a_layer_without_a_gradient_has_a_reason() -> None:
    """A layer behind which every unit is dead."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    instance = cb.Instance(model, torch.rand(6, 3).double(), torch.tensor([0, 1, 0, 0, 1, 0]))
    fisher, gradient = exact_fisher(instance), instance.gradient()
    descent = Descent(instance.elsewhere(instance.inputs, instance.targets).loss_along, "the batch itself", EPS)
    fitted = Fitted.of(cb.probe("kfac"), instance, True)
    rows = {(r.metric, r.scope): r for r in grid_rows(fitted, fisher, targets_of(fisher, gradient, 1e-3), descent)}
    assert rows["damping.best", "0"].reason == "the gradient or the step is zero here"
    assert rows["damping.best", "network"].value is not None


def test_scopes_have_one_form() -> None:
    assert [scope_of(d) for d in (1e-8, 1e-3, 1.0, 100.0, 2.5e-3)] == [
        *("damping=1e-08", "damping=1e-03", "damping=1e+00", "damping=1e+02", "damping=0.0025")
    ]


def test_the_default_table_has_no_grid() -> None:
    assert "damping" not in METERS and PROBED >= {"damping", *METERS}
    probe, problem = cb.probe("kfac"), cb.problem("mlp", samples=4)
    assert "damping" in cb.Preset([problem], [probe], meters=(*METERS, "damping")).meters


@pytest.mark.parametrize("name", ["mlp_tanh", "embedding", "tokens", "nasty_cnn", "mlp_gaussian"])
def test_the_loss_along_a_step_is_that_of_a_moved_model(name: str) -> None:
    model, inputs, targets = CASES[name].build()
    instance = cb.Instance(model, inputs, targets, CASES[name].loss)
    some = slice(1, None)
    other = instance.elsewhere(inputs[some], targets[some])
    step = 0.1 * torch.randn_like(instance.gradient())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = other.loss_along(step)(1.0)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for key, change in instance.unpack(step).items():
            moved.get_parameter(key).sub_(change)
    assert found == pytest.approx(
        cb.Instance(moved, inputs[some], targets[some], CASES[name].loss).loss_along(step)(0.0), rel=1e-12
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert instance.loss_along(step)(0.0) != found


def test_a_tied_weight_moves_in_both_places() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.last.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(x)))

    model, x, y = Tied().double(), torch.randint(5, (6,)), torch.randint(5, (6,))
    instance = cb.Instance(model, x, y)
    step = 0.1 * torch.randn_like(instance.gradient())
    (change,) = instance.unpack(step).values()
    found = instance.elsewhere(x, y).loss_along(step)(1.0)
    weight = model.first.weight.detach() - change
    assert found == pytest.approx(float(functional.cross_entropy(torch.tanh(weight[x]) @ weight.T, y)), rel=1e-12)
