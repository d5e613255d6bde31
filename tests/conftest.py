"""The case table as fixtures, and one thread per process: several of them share the cores."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases import ROWS, Case, Truth, instance_of, truth
from torch.nn import functional

import curvbench as cb
from curvbench.cli.app import main

collect_ignore = ["plugin"]  # a package as others install it, broken parts included
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests begin
for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"):
    os.environ.pop(name, None)  # a test is no step of the workflow that runs it

with warnings.catch_warnings():  # torch says once per process that an even kernel is padded by a copy
    warnings.simplefilter("ignore")
    functional.conv1d(torch.zeros(1, 1, 4), torch.zeros(1, 1, 2), padding="same")
    functional.conv2d(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2), padding="same")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cuda", choices=["cuda", "cpu"], help="where tests/test_gpu.py runs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: what is stolen at the end is short."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same numbers in every run and in every order of the tests."""
    torch.manual_seed(0)


@pytest.fixture(params=ROWS, ids=[case.name for case in ROWS])
def case(request: pytest.FixtureRequest) -> Case:
    """Every case of the table in turn."""
    return request.param


@pytest.fixture
def judge(case: Case) -> Truth:
    """The dense truth about ``case``."""
    return truth(case.name)


@pytest.fixture
def instance(case: Case) -> cb.Instance:
    """``case`` as an instance, shared: no test may change its model."""
    return instance_of(case.name)


@pytest.fixture
def curvbench(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """The command line in a folder of its own: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def typed(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        captured = capsys.readouterr()
        assert captured.err.count("\n") <= 1, "an error is one line"
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out, captured.err

    return typed
