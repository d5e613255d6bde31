"""Programs of the pages run as they stand, and pages and pictures are made of what they print."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

import agents
import run_page
from curvbench.analysis.roles import COMPARED
from curvbench.comparison import BOUNDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "docs" / "tutorials" / "your_model.md", ROOT / "docs" / "models.md"]
PROGRAMS = [program for page in PAGES for program in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]
MODELS = ("plain", "resnet", "vit", "gpt2", "bert", "unet")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of transformers
@pytest.mark.parametrize("model", MODELS)
def test_the_calls_on_models_of_users_run(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = PROGRAMS[MODELS.index(model)]
    exec(compile(source, model, "exec"), {"__name__": "page"})
    out, err = capsys.readouterr()
    named = re.search(r"probes=\[(.*?)\]", source)
    methods = re.findall(r'"(\w+)"', named[1]) if named else [*COMPARED, *BOUNDS]
    for method in methods:
        (row,) = re.findall(rf"^{method}(?:\[\S+\])? .*$", out, re.MULTILINE)
        assert re.search(r"-?\d", row.split(maxsplit=1)[1])
    assert "all parameters" in out and out.count("\n- ") >= 3
    assert not re.search(r": (error|unsupported|skipped)", err)


QUESTIONS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "questions.md").read_text(), re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("program", [text for text in QUESTIONS if "my_module()" in text], ids=range(4))
def test_programs_of_the_questions_run(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ROOT / "curvbench" / "cli" / "templates" / "my_module.py"
    spec = importlib.util.spec_from_file_location("my_module", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "my_module", module)
    exec(compile(program, "questions.md", "exec"), {"__name__": "page"})
    assert re.search(r"\d", capsys.readouterr().out)


def test_there_is_a_program_for_every_model() -> None:
    assert len(PROGRAMS) == len(MODELS)


EXECUTED = [
    page
    for name in ("tutorials", "gallery", "concepts")
    for page in sorted((ROOT / "docs" / name).glob("*.md"))
    if "```python" in page.read_text() or "```text" in page.read_text()
]
GALLERY = [page for page in sorted((ROOT / "docs" / "gallery").glob("*.md")) if page.name != "index.md"]


@pytest.mark.long
@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_pages_are_executed(page: Path, tmp_path: Path) -> None:
    text = run_page.executed(page, tmp_path)
    assert words(text) == words(page.read_text()), f"run `python scripts/run_page.py {page.relative_to(ROOT)}`"
    own = {target for target in run_page.PICTURE.findall(text) if Path(target).parent.name == page.parent.name}
    assert set(run_page.figures_of(page, tmp_path)) == own


def words(text: str) -> list[str]:
    """The first word of every line that is not indented: another machine prints other numbers in the same rows."""
    return [re.sub(r"\d\S*", "0", line.split()[0]) for line in text.splitlines() if line[:1].strip()]


@pytest.mark.parametrize("page", GALLERY, ids=lambda page: page.stem)
def test_an_example_of_the_gallery_is_a_question_a_short_program_and_a_small_picture(page: Path) -> None:
    text = page.read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (picture,) = re.findall(r"\((.*?\.svg)\)", text)
    assert text.startswith("# ") and text.splitlines()[0].endswith("?")
    assert len(program.splitlines()) <= 27 and f'"{page.stem}.html"' in program
    assert Path(picture).stem == page.stem and (page.parent / picture).stat().st_size < 150_000
    assert "```text\n```" not in text, "its output is missing"


@pytest.mark.parametrize("name", ["llms.txt", "SKILL.md"])
def test_files_for_agents_have_the_commands_of_the_questions(name: str) -> None:
    assert (ROOT / name).read_text() == agents.text(name), "run `python scripts/agents.py`"
    assert agents.text(name).count("# ") > 10 and "curvbench advise" in agents.text(name)


def test_outputs_take_the_place_of_what_stood_there(tmp_path: Path) -> None:
    page = "a\n```sh\necho 1 > kept\n```\n\nb\n\n```python\nprint(open('kept').read())\n```\n\n```text\nold\n```\n"
    assert run_page.rendered(page, run_page.runner(tmp_path)) == page.replace("old", "1")


def test_a_picture_is_the_figure_that_a_program_has_left(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("![one](../images/one.svg) ![two](../images/two.svg)")
    (tmp_path / "one.html").write_text("a figure")
    assert run_page.figures_of(page, tmp_path) == {"../images/one.svg": "a figure"}
