"""Make the README's pictures again: python scripts/pictures.py [RUN]. Needs Chromium and the extra ``test``.

Figures of a run (without RUN, of the shipped sample) as ``docs/images/*.svg``, drawn by plotly itself.
"""

from __future__ import annotations

import base64
import shutil
import sys
from pathlib import Path
from typing import Any

from curvbench import plot, store
from curvbench.analysis import frames
from curvbench.analysis.views import FLOPS, Quantity

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
WIDTH = 900


def main(arguments: list[str]) -> None:
    """Draw every picture."""
    run = Path(arguments[0]) if arguments else store.runs_below(ROOT / "data" / "sample")[-1]
    frame = store.load(run)
    problem = frames.problems(frame)[-1]
    IMAGES.mkdir(parents=True, exist_ok=True)
    figures = {
        "tradeoff": plot.tradeoff(frame, problem, FLOPS, Quantity("error.scale_optimal", "layer blocks")),
        "layers": plot.heatmap(frame, problem),
        "cost": plot.cost(frame, problem),
    }
    for name, content in as_svg(figures).items():
        (IMAGES / f"{name}.svg").write_bytes(content)
        print(f"{IMAGES / name}.svg: {len(content) / 1000:.0f} kB")


def as_svg(figures: dict[str, Any]) -> dict[str, bytes]:
    """The figures as SVG."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or sys.exit("no chromium on the path")
    images = {}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=list(FLAGS))
        page = browser.new_page()
        for name, figure in figures.items():
            page.set_content(figure.to_html(include_plotlyjs=True))
            page.wait_for_selector(".main-svg")
            size = {"format": "svg", "width": WIDTH, "height": figure.layout.height}
            address = page.evaluate("size => Plotly.toImage(document.querySelector('.js-plotly-plot'), size)", size)
            images[name] = _decoded(address)
        browser.close()
    return images


def _decoded(address: str) -> bytes:
    from urllib.parse import unquote

    head, _, content = address.partition(",")
    return base64.b64decode(content) if head.endswith("base64") else unquote(content).encode()


if __name__ == "__main__":
    main(sys.argv[1:])
