from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_measure import Fake, Toy
from frames import failed_cell, fisher_cell, raw, write_run

from curvbench import report, store
from curvbench.cli.app import main
from curvbench.report import terminal
from curvbench.spec import Row
from curvbench.spec.pictures import Blocks, Spectrum

HOSTILE = "<img src=x onerror=alert(1)>|_&%$"
CELLS = [
    (Fake(), Toy(), fisher_cell(0.5, 2.0)),
    (Fake(damping=0.5), Toy(), fisher_cell(0.25, 4.0)),
    (Fake(does=HOSTILE), Toy(), failed_cell(reason=f"no {HOSTILE}")),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "results", "r1", CELLS)


class Page(HTMLParser):
    """Which tags there are, and what they load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def bundle(text: str) -> dict[str, Any]:
    """Plotly and the figures of a page, as its script unpacks them."""
    (packed,) = re.findall(r'id="bundle">([^<]+)</script>', text)
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def test_one_page_that_loads_nothing(run: Path) -> None:
    pytest.importorskip("plotly", reason="figures need the extra `dashboard`")
    text = report.write(report.read([run]), "html")
    page, packed = Page(text), bundle(text)
    assert "img" not in page.tags
    assert page.links and all(link.startswith("#") and f'id="{link[1:]}"' in text for link in page.links)
    assert "plotly.js v" in packed["library"] and len(text) < 3e6
    assert len(packed["figures"]) == text.count("<details") >= 6
    assert all(figure["data"] and figure["csv"].count("\n") > 1 for figure in packed["figures"])
    for words in ("curvbench run suites/s", "2.13", "timeout", "-p 'Fake[does=", HOSTILE, "0.250"):
        assert words in page.text
    assert text.index("0.250</b>") > 0, "the best of a column is bold"
    assert text.index("PyTorch") < text.index("Contents") < text.index("0.250</b>"), "environment comes first"


def test_markdown(run: Path) -> None:
    text = report.write(report.read([run]), "markdown")
    assert "| Fake\\[damping=0.5\\] |  | **0.250** | **0.250** | **0.125** |" in text
    assert "| method | gap closed | error network | error blocks |" in text
    outside = re.sub(r"```sh\n.*?\n```", "", text, flags=re.DOTALL)
    assert "<img" not in outside
    assert "--seed 0 --dtype float64 --parameters all --force" in text
    assert "timeout | no &lt;img" in text
    assert "```sh\ncurvbench run suites/s\n```" in text
    assert "- PyTorch: 2.13" in text and "- parameters covered: all" in text
    assert len({line.count(" | ") for line in text.splitlines() if line.startswith("| Fake") and "**" in line}) == 1


def test_latex(run: Path) -> None:
    text = report.write(report.read([run]), "latex")
    assert r"Fake[damping=0.5] &  & \textbf{0.250} & \textbf{0.250} & \textbf{0.125}" in text
    assert r"\textless{}img src=x onerror=alert(1)\textgreater{}\textbar{}\_\&\%\$] (timeout) &" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    assert all(line.count("&") - line.count(r"\&") == 9 for line in text.splitlines() if line.endswith(r"\\"))


def test_latex_compiles(run: Path, tmp_path: Path) -> None:
    latex = shutil.which("pdflatex") or pytest.skip("no pdflatex here")
    body = report.write(report.read([run]), "latex")
    (tmp_path / "t.tex").write_text(
        rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{body}\end{{document}}"
    )
    done = subprocess.run([latex, "-halt-on-error", "t.tex"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_verdict_comes_first(tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="figures need the extra `dashboard`")
    cells = [(Fake(), Toy(), [*fisher_cell(), raw("direction.gap_closed", 0.5)])]
    folder = write_run(tmp_path, "r1", cells)
    said = "Fake closes most of the gap between a plain gradient step"
    for form, table in {"html": "<table", "markdown": "| method", "latex": r"\begin{tabular}"}.items():
        text = re.sub(r"\n%? *", " ", report.write(report.read([folder]), form))
        assert "Provisional: " not in text
        assert text.index(said) < text.index(table), "before the numbers"
    running = write_run(tmp_path, "r2", cells, planned=1)
    assert "- Provisional: Within 2 gradients" in report.write(report.read([running]), "markdown")
    shown = list(terminal.verdicts(store.load(folder), ["Toy"], provisional=True))
    assert shown[0] == "Toy:" and shown[1].startswith("- Provisional: Within 2 gradients a step")
    assert list(terminal.verdicts(store.load(folder), [])) == []


def test_ranges_over_seeds_are_given(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "r1", [(Fake(), Toy(), fisher_cell(error)) for error in (0.25, 0.75)])
    assert "0.500** [0.250, 0.750]" in report.write(report.read([folder]), "markdown")
    assert r"\textbf{0.500} [0.250, 0.750]" in report.write(report.read([folder]), "latex")


@pytest.mark.parametrize("form", ["markdown", "latex"])
def test_the_verb(form: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["report", str(run), "--format", form, "--output", str(tmp_path / "out")])
    assert left.value.code == 0
    assert f"report: {tmp_path / 'out'}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["report", "r1", "--format", form, "--results", str(run.parents[1])])
    assert capsys.readouterr().out == (tmp_path / "out").read_text()


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = write_run(tmp_path, "r9", [])
    for arguments in (
        ["nowhere"],
        [str(empty)],
        [str(empty), "--format", "pdf"],
        ["latest", "--output", "/no/such/file"],
    ):
        with pytest.raises(SystemExit) as left:
            main(["report", *arguments, "--results", str(tmp_path)])
        assert left.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def trained(best: float) -> list[Row]:
    rows = [Row("test.accuracy", value, epoch=epoch) for epoch, value in enumerate((0.1, best / 2, best))]
    return [*rows, *(Row("train.seconds", float(epoch), epoch=epoch) for epoch in (1, 2))]


@pytest.mark.parametrize("format", report.FORMATS)
def test_a_run_that_trained_has_the_columns_of_trainings(format: str, tmp_path: Path) -> None:
    if format == "html":
        pytest.importorskip("plotly", reason="figures need the extra `dashboard`")
    run = write_run(tmp_path, "r1", [(Fake(), Toy(), trained(0.9)), (Fake("b"), Toy(), trained(0.8))])
    text = report.write(report.read([run]), format)
    assert "test accuracy" in text
    assert "train seconds" in text
    assert "step cosine" not in text
    assert "0.900" in text
    if format == "html":
        assert "seconds to a test accuracy" in text


def test_the_page_shows_the_nearest_matrices_and_their_spectra(tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="figures need the extra `dashboard`")
    probes = {does: Fake(does) for does in ("exact", "near", "far")}
    run = write_run(tmp_path / "results", "r1", [(probe, Toy(), fisher_cell()) for probe in probes.values()])
    exact = np.diag([2.0, 1.0, 1.0, 1.0])
    for k, error in enumerate((0.0, 0.25, 0.5)):
        spectrum = Spectrum(np.array([2.0, 1.0]), np.array([2.0, 1.0 + error]))
        store.write_blocks(run, f"c{k}", Blocks("fc1", 2, exact, 4 * (exact + error * (1 - exact)), {"fc1": spectrum}))
    text = report.write(report.read([run]), "html")
    names = re.findall(r'download="matrices-([^"]*)-Toy.csv"', text)
    titles = [figure["layout"]["title"]["text"] for figure in bundle(text)["figures"]]
    assert names == ["Fake[does=near]", "Fake[does=far]"], "what is exact after the best multiple shows nothing"
    assert titles.count("Layer fc1: largest eigenvalues") == 1


def test_damaged_blocks_are_a_picture_less(run: Path) -> None:
    pytest.importorskip("plotly", reason="figures need the extra `dashboard`")
    (run / "blocks").mkdir()
    (run / "blocks" / "c0.npz").write_bytes(b"PK")
    with pytest.warns(UserWarning, match="c0.npz"):
        runs = report.read([run])
    assert "matrices-" not in report.write(runs, "html")
