"""The readme of a package stands without the files beside it. ``scripts/smoke_wheel.py`` builds and uses the wheel."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def build() -> Any:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_an_address_links_are_words_and_pictures_are_left_out(build: Any) -> None:
    text = build.standing_alone(README, "")
    assert not re.search(r"\]\((?!https?:)", text)
    assert "docs/results.md has all rows" in text and "Share of the gap closed" not in text
    assert build.standing_alone("[a](https://b.c), [d](#e)", "") == "[a](https://b.c), [d](#e)"


def test_with_an_address_every_link_leads_there(build: Any) -> None:
    text = build.standing_alone(README, "https://host/owner/curvbench")
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) == len(re.findall(r"\]\(([^)]+)\)", README))
    assert all(target.startswith("https://") for target in targets)
    assert "](https://host/owner/curvbench/raw/main/docs/images/gap.svg)" in text
    assert "](https://host/owner/curvbench/blob/main/docs/results.md)" in text
