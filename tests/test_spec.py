"""Contracts that hold because a value that breaks them cannot be made."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
from fake_measure import Fake, Toy

from curvbench.spec import Cell, Component, FisherProbe, Preset, Row, Status, Training
from curvbench.spec.probe import RENAMED

NO_NUMBERS = [(math.nan, "not a number"), (math.inf, "infinite"), (-math.inf, "infinite")]


@pytest.mark.parametrize(("value", "words"), NO_NUMBERS)
@pytest.mark.parametrize("metric", ["error.relative", "time.wall", "a.metric.of.ones.own"])
def test_a_row_that_is_no_number_is_an_error(value: float, words: str, metric: str) -> None:
    for row in (
        Row(metric, value),
        replace(Row(metric, 1.0), value=value),
        Row(metric, 1.0, samples=[1.0, value]),
        Row(metric, value, reason="x"),
    ):
        assert (row.status, row.value, list(row.samples)) == (Status.ERROR, None, [])
        assert row.reason == f"what was measured is {words}"


def test_other_rows_stay_as_they_are() -> None:
    assert Row("error.relative", 0.0).status is Status.OK
    assert Row("error.relative", None, status=Status.SKIPPED, reason="none").reason == "none"
    assert Row(status=Status.DIVERGED, reason="the loss is nan").status is Status.DIVERGED


@pytest.mark.parametrize("damping", [0.0, -1.0, math.nan, math.inf])
def test_a_damping_without_an_exact_step_is_refused(damping: float) -> None:
    for make in (
        lambda: Preset([Toy()], [Fake()], damping=damping),
        lambda: Cell("s", Toy(), Fake(), 0, damping=damping),
    ):
        with pytest.raises(ValueError, match="must be finite and above zero"):
            make()


@pytest.mark.parametrize("name", RENAMED)
def test_a_probe_of_the_first_version_is_told_the_new_name(name: str) -> None:
    with pytest.raises(TypeError, match=rf"Mine\.{name} has given way to ") as caught:
        type("Mine", (FisherProbe,), {name: True})
    assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class Settings(Component):
    anything: Any = None
    number: float = 1.0
    several: tuple[int, ...] = ()
    choice: Literal["a", "b"] | None = None


@pytest.mark.parametrize("value", [None, "x", 3, object(), [1]])
def test_a_field_that_allows_anything_takes_anything(value: object) -> None:
    assert Settings(anything=value).anything is value


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"number": "1"}, "Settings: number must be a number, got '1'"),
        ({"number": math.nan}, "Settings: number must be a number, got nan"),
        ({"several": [1, 2]}, "Settings: several must be an integer, or several with slashes between them, got"),
        ({"choice": "c"}, "Settings: choice must be one of a, b, none, got 'c'"),
    ],
)
def test_a_value_that_its_annotation_does_not_allow_is_one_line(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Settings(**values)


def test_an_integer_becomes_a_float_where_one_is_expected() -> None:
    assert repr(Settings(number=2).number) == "2.0"


def test_old_names_of_a_mix_in_are_told_too() -> None:
    class MixIn:
        averages = True

    with pytest.raises(TypeError, match=r"Mine\.averages has given way to supports_ema"):
        type("Mine", (MixIn, FisherProbe), {})


@pytest.mark.parametrize(("name", "mix_in"), [("weigh", "Weighs"), ("follow", "Follows")])
def test_a_hook_without_its_mix_in_is_refused(name: str, mix_in: str) -> None:
    with pytest.raises(TypeError, match=rf"Mine\.{name} .*{mix_in}"):
        type("Mine", (FisherProbe,), {name: lambda self, state, batch: None})


def test_integers_of_a_tuple_become_floats_too() -> None:
    assert repr(Training(epochs=2, lr=0.1, schedule="step", at=(1,)).at) == "(1.0,)"


def test_a_number_beyond_every_float_is_refused() -> None:
    with pytest.raises(ValueError, match="Settings: number must be a number"):
        Settings(number=10**400)
