from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import plotly.io
import pytest

from curvbench import report, shipped, store
from curvbench.report import images

KNOWN = importlib.util.find_spec
RUNS = store.runs_below(shipped.DATA / "sample" / "mlp")


def test_every_figure_has_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not kaleido is here: it draws what it is given."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: KNOWN("plotly" if name == "kaleido" else name))
    drawn: list[Path] = []

    def write_images(figures: Sequence[object], files: Sequence[Path]) -> None:
        assert len(figures) == len(files)
        drawn.extend(files)

    monkeypatch.setattr(plotly.io, "write_images", write_images)
    files = images.write(report.read(RUNS), "svg", tmp_path / "figures of a paper")
    assert files == drawn and len(set(files)) == len(files) > 10
    assert {(file.parent, file.suffix) for file in files} == {(tmp_path / "figures of a paper", ".svg")}


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "kaleido" else KNOWN(name))
    with pytest.raises(ImportError, match=r"as PDF need kaleido.*pip install 'curvbench\[images\]'"):
        images.write([], "pdf", tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: KNOWN("plotly" if name == "kaleido" else name))

    def write_images(figures: Sequence[object], files: Sequence[Path]) -> None:
        raise RuntimeError("Kaleido requires\nChrome")

    monkeypatch.setattr(plotly.io, "write_images", write_images)
    with pytest.raises(ValueError, match="Kaleido requires Chrome"):
        images.write([], "pdf", tmp_path)
