"""The site: what its pages are made of, and that it loads nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from curvbench import registry
from docsite import assemble, measured, reference
from docsite.build import build, loaded_from_elsewhere
from docsite.pictures import Pictures, colours

PROBES = {name: registry.describe(name, kind) for name, kind in registry.probes().items()}


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://cdn.example/a.js"></script>',
        "<script async src=//cdn.example/a.js></script>",
        '<link rel="stylesheet" href="https://fonts.example/a.css">',
        '<link href="http://cdn.example/a.ico" rel="icon">',
        '<img alt="a" src="https://cdn.example/a.png">',
        '<source srcset="https://cdn.example/a.png 2x">',
        "<style>@font-face { src: url(https://fonts.example/a.woff2) }</style>",
        '<style>@import "https://fonts.example/a.css";</style>',
        '<svg><image href="https://cdn.example/a.png"/></svg>',
    ],
)
def test_what_a_page_loads_from_elsewhere_is_named(page: str, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(f"<html>\n{page}\n</html>")
    (named,) = loaded_from_elsewhere(tmp_path)
    assert named.startswith("a.html: ") and ".example/a." in named


def test_links_and_names_of_formats_load_nothing(tmp_path: Path) -> None:
    page = '<a href="https://a.example">a</a> <svg xmlns="http://www.w3.org/2000/svg"></svg> <img src="a.png">'
    (tmp_path / "a.html").write_text(f'{page} <link rel="canonical" href="https://a.example"> <script src="a.js">')
    assert not list(loaded_from_elsewhere(tmp_path))


def test_links_lead_to_pages_of_the_site(tmp_path: Path) -> None:
    page = "[a](../docs/methods.md#kfac) [b](methods.md) [c](../README.md) [d](../suites) [e](../LICENSE) [f](today.md)"
    led = assemble.linked(page, Path("docs/a.md"), tmp_path)
    assert led == (
        "[a](../docs/methods/kfac.md) [b](../docs/methods/index.md) [c](../index.md) d [e](../LICENSE) [f](today.md)"
    )
    assert (tmp_path / "LICENSE").exists(), "a file that is no page can be downloaded"
    code = "```sh\n[a](../suites)\n```\n"
    assert assemble.linked(code, Path("docs/a.md"), tmp_path) == code


def test_lists_of_pages_hold_those_that_there_are(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.md").touch()
    text = "```{toctree}\n:glob:\n\nhere/*\nthere/*\n```\n\n```{toctree}\n:glob:\n\nthere/*\n```\n"
    assert assemble.listed(text, tmp_path) == "```{toctree}\n:glob:\n\nhere/*\n```\n\n"
    for name in ("b", "c", "index"):
        (tmp_path / "here" / f"{name}.md").write_text("[c](c.md) [elsewhere](../b.md) [gone](d.md) [c](c.md)")
    assert assemble.above_others(tmp_path / "here" / "index.md").endswith(":hidden:\n\nc\na\nb\n```\n")


def test_the_dark_screen_turns_lines_over_and_no_colours_of_a_map(tmp_path: Path) -> None:
    (tmp_path / "lines.svg").write_text("<svg><path/></svg>")
    (tmp_path / "map.svg").write_text('<svg><image href="data:image/png;base64,"/></svg>')
    assert assemble.as_drawn(tmp_path) == 'img[src$="/map.svg"] { filter: none !important; }\n'


def test_every_public_name_is_documented_and_one_that_is_not_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(reference.pages()) > {"command-line.md", "metrics.md", "api-measure.md"}

    class Mute:
        def speak(self) -> None:
            raise NotImplementedError

    Mute.__doc__ = None
    monkeypatch.setattr("curvbench.fit", Mute, raising=False)
    with pytest.raises(ValueError, match=r"without a docstring: fit, fit\.speak"):
        reference.pages()
    monkeypatch.setattr("curvbench.__all__", ["measure", "new"])
    with pytest.raises(ValueError, match=r"no group of .* has: new"):
        reference.pages()


def test_every_method_has_the_rows_of_the_shipped_runs() -> None:
    rows = measured.rows()
    assert set(PROBES) <= set(rows)
    of_kfac = {(row.network, row.label): row for row in rows["kfac"]}
    printed = re.findall(r"^kfac +(.*)$", (assemble.ROOT / "docs" / "results.md").read_text(), re.MULTILINE)[1].split()
    shown = of_kfac["resnet[samples=32,epochs=5]", "kfac"]
    assert [shown.gap, shown.error, shown.flops, shown.memory] == [printed[place] for place in (0, 3, 7, 8)]
    assert any(row.source.startswith("[today]") for row in rows["psgd"])


@pytest.mark.parametrize("name", PROBES)
def test_formulas_are_whole(name: str) -> None:
    """The first one is the represented matrix; each can be drawn without a network."""
    first, *others = PROBES[name]["formulas"]
    assert first.startswith(r"\hat F")
    converter = pytest.importorskip("latex2mathml.converter")
    for formula in (first, *others):
        assert formula.count("{") == formula.count("}")
        assert "<math" in (drawn := converter.convert(formula)) and "\\" not in drawn, formula


def test_matrices_are_drawn_beside_the_exact_one(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pictures = Pictures()
    errors = [pictures.draw(name, tmp_path) for name in ("full", "layer", "kfac", "identity")]
    assert errors[0] < 1e-12 and errors == sorted(errors) and errors[-1] < 1
    pixels = np.asarray(image.open(tmp_path / "full.png"))
    size = len(pictures.exact)
    assert pixels.shape == (size, 3 * size + 4, 4)
    assert not pixels[:, 2 * size + 4 :, 3].any(), "the exact Fisher differs from itself nowhere"


def test_colours_have_the_sign_and_the_opacity_has_the_size() -> None:
    blue, orange, faint, nothing = colours(np.array([[1.0, -1.0], [0.1, 0.0]]), 1.0).reshape(4, 4)
    assert blue[2] > blue[0] and orange[0] > orange[2]
    assert blue[3] == orange[3] == 255 > faint[3] > nothing[3] == 0


@pytest.mark.long
def test_the_site_is_built_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    build(tmp_path / "site")
    pages = {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "docs/methods/kfac.html", "docs/reference/api-measure.html", "docs/results.html"} <= pages
    assert not list(loaded_from_elsewhere(tmp_path / "site"))
    formula = re.search(r"<math.*?</math>", (tmp_path / "site" / "docs" / "methods" / "kfac.html").read_text())
    assert formula is not None
