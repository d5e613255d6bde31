"""The README's promises: its commands are what CI calls, its Python runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [line for language, code in BLOCKS if language == "sh" for line in code.splitlines()]


def test_ci_calls_the_test_command() -> None:
    (command,) = [line for line in SHELL if ".venv/bin/pytest" in line]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("code", PYTHON)
def test_python_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_example_is_ten_lines() -> None:
    lines = [line for line in PYTHON[0].splitlines() if line.strip()]
    assert len(lines) <= 10


def test_every_room_is_in_the_picture() -> None:
    rooms = {
        path.name for path in (ROOT / "curvbench").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    missing = {room for room in rooms - {"__init__.py", "__main__.py"} if room.removesuffix(".py") not in README}
    assert not missing
