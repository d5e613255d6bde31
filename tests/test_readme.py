"""What the README and the pages promise: their commands are taken, their Python runs, their links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from curvbench.cli.app import cli

ROOT = Path(__file__).parent.parent
PAGES = {path: path.read_text() for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]}
README = PAGES[ROOT / "README.md"]
BLOCKS = [
    (str(path.relative_to(ROOT)), language, code)
    for path, page in PAGES.items()
    for language, code in re.findall(r"^```(\w+)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
]
ELSEWHERE = ("SKILL.md", "README.md", "docs/ci.md", "docs/models.md", "docs/questions.md")  # other tests run these,
EXECUTED = ("docs/tutorials/", "docs/gallery/", "docs/concepts/")  # and test_pages.py these
PROGRAMS: dict[str, list[str]] = {}
for name, language, code in BLOCKS:
    if language == "python" and name not in ELSEWHERE and not name.startswith(EXECUTED):
        PROGRAMS.setdefault(name, []).append(code)
COMMANDS = [
    (name, command)
    for name, language, code in BLOCKS
    if language == "sh"
    for command in re.findall(r"\bcurvbench ([a-z]+[^\n)#|>&]*)", code.replace("2>", ">"))
]
VERBS = [(path.name, verb) for path, page in PAGES.items() for verb in re.findall(r"`curvbench ([a-z]+)", page)]
LINKS = [(path, target) for path, page in PAGES.items() for target in re.findall(r"\]\((?!https?://)([^)#]+)", page)]


def test_ci_calls_the_test_command() -> None:
    (command,) = [line for line in README.splitlines() if ".venv/bin/pytest" in line]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 1000


def test_example_is_ten_lines_and_prints_what_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    code, output = re.findall(r"```python\n(.*?)```\n+```text\n(.*?)```", README, re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out == output


@pytest.mark.parametrize("name", PROGRAMS)
def test_python_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for code in PROGRAMS[name]:  # one after the other, as a reader types them
        exec(compile(code, name, "exec"), names)


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_commands_are_taken(name: str, command: str) -> None:
    verb, *arguments = shlex.split(command.replace("--rerun-failed ", "--rerun-failed=all "))  # as the entry point does
    known = cli.get_command(click.Context(cli), verb)
    assert known is not None, f"{name}: no verb {verb}"
    known.make_context(verb, arguments)


def test_every_page_with_commands_is_checked() -> None:
    pages = ("running", "training", "papers", "tutorials/cluster", "dashboard", "ci")
    assert {"README.md", "SKILL.md", *(f"docs/{name}.md" for name in pages)} <= {name for name, _ in COMMANDS}


@pytest.mark.parametrize(("name", "verb"), sorted(set(VERBS)))
def test_verbs_in_sentences_exist(name: str, verb: str) -> None:
    assert verb in cli.list_commands(click.Context(cli)), name


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_links_lead_to_files(page: Path, target: str) -> None:
    assert (page.parent / target.replace("\\", "")).exists()


def test_every_page_is_linked_from_the_readme_or_from_an_index_that_it_links() -> None:
    linked = {(page.parent / target).resolve() for page, target in LINKS if page.name in ("README.md", "index.md")}
    pages = [page for page in PAGES if page.is_relative_to(ROOT / "docs") and page.parent.name != "site"]
    assert [page for page in pages if page not in linked] == []
