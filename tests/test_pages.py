"""Programs of the page on models of one's own run as they stand, and the page is rendered from what they print."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from curvbench.analysis.roles import COMPARED
from curvbench.comparison import BOUNDS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "your_model.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
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


def test_outputs_take_the_place_of_what_stood_there(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from run_page import rendered, runner
    finally:
        sys.path.pop(0)
    page = "a\n```sh\necho 1 > kept\n```\n\nb\n\n```python\nprint(open('kept').read())\n```\n\n```text\nold\n```\n"
    assert rendered(page, runner(tmp_path)) == page.replace("old", "1")
