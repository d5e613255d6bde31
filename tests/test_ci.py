"""What the pages on continuous integration tell people to type is what the command line takes."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest

from curvbench.cli.app import cli
from curvbench.registry import files, load_suite

ROOT = Path(__file__).parent.parent
TEXTS = {name: (ROOT / name).read_text() for name in (".github/workflows/curvbench.yml", "docs/ci.md", ".ci/run")}
COMMANDS = [
    (name, command)
    for name, text in TEXTS.items()
    for command in re.findall(r"^[^#\n`]*?\bcurvbench ((?:run|check|compare|export) [^\n`)#|>]*)", text, re.M)
]


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_commands_are_taken(name: str, command: str) -> None:
    verb, *arguments = shlex.split(command)
    found = cli.get_command(click.Context(cli), verb)
    assert found is not None
    found.make_context(verb, arguments)


def test_every_page_has_a_run_and_a_check() -> None:
    for name in TEXTS:
        assert {command.split()[0] for page, command in COMMANDS if page == name} >= {"run", "check"}


def test_the_suite_of_the_page_is_a_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = (ROOT / "curvbench" / "cli" / "templates" / "my_suite.py").read_text()
    (suite,) = re.findall(r"```python\n(.*?)```", TEXTS["docs/ci.md"], re.S)
    (tmp_path / "my_suite.py").write_text(probe)
    (tmp_path / "curvbench_suite.py").write_text(suite)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "_files", {})  # ranks of other tests would read the files of this one again
    assert set(load_suite("curvbench_suite")[1].presets) == {"default", "times"}


def test_asv_finds_its_benchmarks() -> None:
    configuration = json.loads((ROOT / "asv.conf.json").read_text())
    folder = ROOT / configuration["benchmark_dir"]
    assert folder.is_relative_to(ROOT / "suites") and (folder / "__init__.py").is_file()
    for pattern in configuration["regressions_thresholds"]:
        re.compile(pattern)
