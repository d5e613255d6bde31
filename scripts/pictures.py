"""Make the pictures of README.md and docs/results.md again. Needs Chromium and the extra ``test``.

    curvbench run suites/resnet
    python scripts/pictures.py results

The pictures show the last problem of the run, which for ``suites/resnet`` is the trained network of the README's table.
The shipped sample does not hold this problem: the script needs a run.
"""

from __future__ import annotations

import base64
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pandas as pd

from curvbench import plot, store
from curvbench.analysis import frames, views
from curvbench.analysis.views import FLOPS, Quantity
from curvbench.plot.axes import graph_objects
from curvbench.plot.look import looks

IMAGES = Path(__file__).parents[1] / "docs" / "images"
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
WIDTH, HEIGHT = 900, 420
AS_SVG = """size => {
  const figure = document.querySelector('.js-plotly-plot')
  return Plotly.toImage(figure, {...size, height: figure.layout.height || size.height})
}"""
GAP = Quantity("direction.gap_closed", "network")
ERROR = Quantity("error.scale_optimal", "layer blocks")
SIDES = {  # the methods of the README, and where each name covers nothing
    **{"adam": "bottom right", "muon": "top right", "soap": "top left", "shampoo": "middle right"},
    **{"kfac": "middle left", "ekfac": "middle right", "fngd": "top center", "lngd": "bottom center"},
}
LEVELS = {0: "the plain gradient", 1: "the exact Fisher, layer by layer"}


def main(arguments: list[str]) -> None:
    """Draw every picture."""
    if len(arguments) != 1:
        sys.exit("expected one argument, a folder of results: `curvbench run suites/resnet` makes the folder results")
    frame = store.load(store.runs_below(Path(arguments[0]))[-1])
    problem = frames.problems(frame)[-1]
    figures = {
        "gap": gap_closed(frame, problem),
        "tradeoff": plot.tradeoff(frame, problem, FLOPS, ERROR),
        "cost": plot.cost(frame, problem),
    }
    IMAGES.mkdir(parents=True, exist_ok=True)
    pages = {name: figure.to_html(include_plotlyjs=True) for name, figure in figures.items()}
    for name, content in drawn(pages).items():
        (IMAGES / f"{name}.svg").write_bytes(content)
        print(f"{IMAGES / name}.svg: {len(content) / 1000:.0f} kB")


def gap_closed(frame: pd.DataFrame, problem: str) -> Any:
    """The share of the gap that the methods of the README close, against the FLOPs of a step."""
    table = views.tradeoff(frame, problem, FLOPS, GAP).set_index("probe")
    figure = graph_objects().Figure()
    for name, look in looks(SIDES).items():
        figure.add_scatter(
            x=[table["x"][name]],
            y=[1 - table["y"][name]],  # a view has the distance from 1
            mode="markers+text",
            text=[f"<b>{name}</b>"],
            textposition=SIDES[name],
            cliponaxis=False,
            marker=look.marker(12),
        )
    for level, text in LEVELS.items():
        line = {"dash": "dot", "width": 1.5, "color": "#808080"}
        figure.add_hline(level, line=line, annotation_text=text, annotation_position="top left")
    figure.update_layout(
        template="plotly_white",
        height=HEIGHT,
        showlegend=False,
        margin={"l": 72, "r": 30, "t": 20, "b": 56},
        xaxis={"type": "log", "dtick": "D2", "tickformat": "~g", "title": "FLOPs of a step / FLOPs of a gradient step"},
        yaxis={"title": "share of the gap closed, higher is better"},
    )
    return figure


def drawn(pages: Mapping[str, str]) -> dict[str, bytes]:
    """The figure of each page of HTML as SVG, as high as its layout says."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or sys.exit("Chromium is needed: no program `chromium` is on the path")
    pictures = {}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=list(FLAGS))
        page = browser.new_page()
        for name, content in pages.items():
            page.set_content(content)
            page.wait_for_selector(".main-svg")
            pictures[name] = _decoded(page.evaluate(AS_SVG, {"format": "svg", "width": WIDTH, "height": HEIGHT}))
        browser.close()
    return pictures


def _decoded(address: str) -> bytes:
    head, _, content = address.partition(",")
    return base64.b64decode(content) if head.endswith("base64") else unquote(content).encode()


if __name__ == "__main__":
    main(sys.argv[1:])
