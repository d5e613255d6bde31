"""Programs of the page on models of one's own run as they stand, and the page is rendered from what they print."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from curvbench.comparison import BOUNDS, METHODS

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
    methods = re.findall(r'"(\w+)"', named[1]) if named else [*METHODS, *BOUNDS]
    for method in methods:
        (row,) = re.findall(rf"^{method}(?:\[\S+\])? .*$", out, re.MULTILINE)
        assert re.search(r"-?\d", row.split(maxsplit=1)[1])
    assert "all parameters" in out and out.count("\n- ") >= 3
    assert not re.search(r": (error|unsupported|skipped)", err)


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
