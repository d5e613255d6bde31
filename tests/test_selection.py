from __future__ import annotations

import re

import pytest
from fake_measure import Fake, Toy

from curvbench.planning import selection
from curvbench.planning.plan import FAILED
from curvbench.spec import Preset, Status, Suite, Training

PRESET = Preset([Toy(), Toy(samples=4)], [Fake(), Fake("raise")], seeds=(0, 1), dtype="float64")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("1.5h", 5400), ("1d", 86400), (" 5 s", 5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert selection.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-1", "m", "1w", "1h30m", "nan", "1e3", "ten"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"got {text!r}")):
        selection.duration(text)


@pytest.mark.parametrize(
    ("text", "found"), [("3", (3,)), ("0-4", (0, 1, 2, 3, 4)), ("0,2", (0, 2)), ("5, 0-1", (5, 0, 1)), ("2-2", (2,))]
)
def test_seeds(text: str, found: tuple[int, ...]) -> None:
    assert selection.seeds(text) == found


@pytest.mark.parametrize("text", ["", "a", "4-0", "-1", "1-", "0,,1", "1.5", "0-999999999", "9999999999"])
def test_bad_seeds(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"got {text!r}")):
        selection.seeds(text)


def test_failed_statuses() -> None:
    assert selection.failed_statuses("all", FAILED) == FAILED
    assert selection.failed_statuses("oom, timeout", FAILED) == {Status.OOM_HOST, Status.OOM_DEVICE, Status.TIMEOUT}
    with pytest.raises(ValueError, match="unknown failure 'timeot': did you mean timeout"):
        selection.failed_statuses("timeot", FAILED)


def test_presets_are_listed() -> None:
    suite = Suite("t", {"default": PRESET, "quick": PRESET})
    assert selection.preset(suite, "quick") is PRESET
    with pytest.raises(ValueError, match="no preset 'slow' in this suite; its presets are default, quick"):
        selection.preset(suite, "slow")


def test_a_preset_makes_every_combination_once() -> None:
    cells = selection.select("s", PRESET)
    assert len(set(cells)) == len(cells) == 8
    assert {(cell.dtype, cell.device, cell.threads) for cell in cells} == {("float64", "cpu", 1)}


def test_options_replace_the_preset() -> None:
    cells = selection.select("s", PRESET, ["kfac", "diag"], ["mlp"], "3", "cuda", "float32", 2)
    assert [cell.label for cell in cells] == ["kfac on mlp, seed 3", "diag on mlp, seed 3"]
    assert {(cell.dtype, cell.device, cell.threads) for cell in cells} == {("float32", "cuda", 2)}


def test_parameters_are_the_presets_unless_an_option_replaces_them() -> None:
    weights = Preset([Toy()], [Fake()], parameters="weights")
    assert [
        cell.parameters for preset in (PRESET, weights) for cell in selection.select("s", preset, seed="0")[:1]
    ] == [
        "all",
        "weights",
    ]
    assert {cell.parameters for cell in selection.select("s", weights, parameters="all")} == {"all"}
    with pytest.raises(ValueError, match="parameters must be 'all' or 'weights', got 'biases'"):
        Preset([], [], parameters="biases")  # type: ignore[arg-type]


def test_an_empty_selection_is_refused() -> None:
    with pytest.raises(ValueError, match="the selection is empty: 0 problems, 2 probes, 2 seeds"):
        selection.select("s", Preset([], PRESET.probes, PRESET.seeds))


def test_what_is_no_cell_of_the_original_is_a_surrogate() -> None:
    original = Preset([Toy(), Toy(samples=4)], [Fake()], pairs=[(Toy(), Fake("pair"))], training=Training(5, 0.1))
    same = selection.select("s", original, seed="0-4", originals=[original])
    assert len(same) == 15 and not any(cell.surrogate for cell in same)
    for other in (
        selection.select("s", original, training="epochs=4", originals=[original]),
        selection.select("s", original, ["kfac"], originals=[original]),
        selection.select("s", original, problems=["mlp"], originals=[original]),
        selection.select("s", Preset([Toy(samples=5)], [Fake()], training=Training(5, 0.1)), originals=[original]),
        selection.select("s", Preset([Toy()], [Fake()]), originals=[original]),
    ):
        assert other and all(cell.surrogate for cell in other)
    assert not any(cell.surrogate for cell in selection.select("s", original, training="epochs=4"))


def test_the_original_is_one_of_the_presets() -> None:
    with pytest.raises(ValueError, match="the original of a suite is one of its presets, got 'paper'"):
        Suite("t", {"default": PRESET}, original="paper")
    with pytest.raises(ValueError, match="got 'steps'"):
        Suite("t", {"default": PRESET, "paper": PRESET}, original=("paper", "steps"))


def test_a_published_experiment_may_be_several_presets() -> None:
    suite = Suite(
        "t",
        {name: Preset([Toy(samples=n)], [Fake()]) for n, name in ((1, "default"), (2, "paper"), (3, "steps"))},
        original=("paper", "steps"),
    )
    for name, preset in suite.presets.items():
        (cell,) = selection.select("s", preset, originals=suite.originals)
        assert cell.surrogate == (name == "default")


def test_pairs_are_measured_besides_but_not_where_options_choose() -> None:
    pairs = [(Toy(samples=2), Fake("pair"))]
    preset = Preset(PRESET.problems, PRESET.probes, PRESET.seeds, pairs=pairs, meters=("flops",))
    cells = selection.select("s", preset)
    assert len(cells) == 10
    assert [(cell.problem, cell.probe, cell.seed) for cell in cells[8:]] == [(*pairs[0], 0), (*pairs[0], 1)]
    assert {cell.meters for cell in cells} == {("flops",)}
    assert len(selection.select("s", preset, problems=["mlp"])) == 4
    assert len(selection.select("s", preset, probes=["kfac"])) == 4


@pytest.mark.parametrize("meters", [(), ("cost",), ("flops", "cost")])
def test_unknown_meters_are_refused(meters: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=f"some of clock, flops, .*, got {repr('cost') if meters else 'none'}"):
        Preset([], [], meters=meters)  # type: ignore[arg-type]


def test_an_unknown_summary_is_refused() -> None:
    with pytest.raises(
        ValueError, match="the summary of a suite is one of errors, growth, exact, samples, staleness, got 'both'"
    ):
        Suite("t", {"default": PRESET}, summary="both")  # type: ignore[arg-type]


def test_the_damping_is_the_presets_unless_one_is_given() -> None:
    preset = Preset([Toy()], [Fake(), Fake("raise")], damping=0.25)
    assert {cell.damping for cell in selection.select("s", preset)} == {0.25}
    assert {cell.damping for cell in selection.select("s", preset, damping=0.5)} == {0.5}
    with pytest.raises(ValueError, match="must be finite and above zero, got 0"):
        selection.select("s", preset, damping=0.0)
