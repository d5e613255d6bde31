"""The dashboard as its readers meet it: served by the verb, in a real Chromium, on the shipped sample."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'curvbench[test]'")
pytest.importorskip("streamlit", reason="the dashboard needs the extra `dashboard`")

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.stem for path in (ROOT / "dashboard" / "page").glob("*.py"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
SECONDS = 60_000  # for a busy machine
SETTLED = """() => document.querySelector('[data-test-script-state=notRunning]')
  && !document.querySelector('[data-stale=true], [data-testid=stSkeleton]')
  && [...document.querySelectorAll('[data-testid=stPlotlyChart]')].every(chart => chart.querySelector('.main-svg'))"""
# Below a page's address Streamlit looks for itself once, finds nothing, and goes on one folder up.
ITS_OWN = re.compile(r"/_stcore/(health|host-config)$")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path"),
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CURVBENCH")}
    environment["PYTHONPATH"] = str(ROOT)
    process = subprocess.Popen(
        [sys.executable, "-m", "curvbench", "dashboard", "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "URL:" in line:
            break
    assert process.poll() is None, "".join(said)
    assert f"http://127.0.0.1:{port}" in said[-1]
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.communicate(timeout=30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


class Reader:
    """A tab, and what went wrong in it; left open, its live page would go on asking the server of the next tests."""

    def __init__(self, browser: Any, **settings: Any) -> None:
        self.tab = browser.new_context(**settings).new_page()
        self.tab.set_default_timeout(SECONDS)
        self.errors: list[str] = []
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("console", self._heard)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *raised: object) -> None:
        self.tab.context.close()

    def _heard(self, message: Any) -> None:
        if message.type == "error" and not ITS_OWN.search(message.location.get("url", "")):
            self.errors.append(f"{message.text} {message.location}")

    def open(self, link: str) -> None:
        self.tab.goto(link)
        self.tab.wait_for_selector("h2")
        self.settle()

    def settle(self) -> None:
        for _ in range(2):
            self.tab.wait_for_timeout(250)
            self.tab.wait_for_function(SETTLED)

    def choose(self, label: str, option: str) -> None:
        box = self.tab.get_by_role("combobox", name=re.compile(label)).first
        box.click()
        box.fill(option)  # a long list shows its first entries only
        self.tab.get_by_role("option", name=option, exact=True).click()
        self.settle()


@pytest.mark.parametrize("page", PAGES)
def test_every_page_opens_without_an_error(page: str, address: str, browser: Any) -> None:
    with Reader(browser) as reader:
        reader.open(f"{address}/{'' if page == 'overview' else page}")
        assert reader.tab.locator("[data-testid=stException]").count() == 0
        assert reader.errors == []


def test_navigation_keeps_the_filters_and_a_link_gives_the_view(address: str, browser: Any) -> None:
    with Reader(browser) as reader:
        reader.open(address)
        reader.choose("^Problem", "mlp[epochs=10]")
        reader.tab.wait_for_url(re.compile(r"\?run=mlp/\w+-\w+&problem=mlp\[epochs=10\]$"))
        reader.tab.get_by_role("link", name="Trade-off").click()
        reader.tab.get_by_role("heading", name="Trade-off", exact=True).wait_for()
        reader.settle()
        reader.choose("^Quality", "cosine with the exact step, network")
        reader.tab.wait_for_url(re.compile("y=direction.cosine"))
        link = reader.tab.url
        reader.tab.get_by_role("link", name="Cost").click()
        reader.tab.get_by_role("heading", name="Cost", exact=True).wait_for()
        reader.settle()
        reader.tab.go_back()
        reader.tab.get_by_role("heading", name="Trade-off", exact=True).wait_for()
        reader.settle()
        reader.tab.wait_for_url(link)  # one step back
        assert reader.tab.get_by_role("combobox", name=re.compile("^Quality")).input_value().startswith("cosine")
        assert reader.errors == []
    assert "/tradeoff?" in link and "problem=mlp" in link and "y=direction.cosine" in link

    with Reader(browser, color_scheme="dark", viewport={"width": 800, "height": 900}) as friend:
        friend.open(link)
        titles = friend.tab.locator(".js-plotly-plot .gtitle, .js-plotly-plot .ytitle").all_text_contents()
        assert titles == [
            "cosine with the exact step against FLOPs over SGD's on mlp[epochs=10]",
            "1 - cosine with the exact step, networklower is better",
        ]
        assert friend.tab.url == link
        assert friend.errors == []


def test_the_data_and_the_figure_can_be_taken_away(address: str, browser: Any) -> None:
    with Reader(browser) as reader:
        reader.open(f"{address}/tradeoff")
        for label, start in (("Data (CSV)", "probe,flops"), ("Figure (HTML)", "<!doctype html>")):
            button = reader.tab.get_by_role("button", name=label).first
            assert start in _taken(reader, button).lower()[: len(start)]
        assert reader.errors == []


def _taken(reader: Reader, button: Any, tries: int = 5) -> str:
    """What a button downloads.

    Streamlit forgets a file made on demand when two runs of any open page end before the browser fetches it: such a
    download fails with errors in the console, and the reader clicks again.
    """
    for left in reversed(range(tries)):
        reader.settle()
        before = len(reader.errors)
        with reader.tab.expect_download() as taken:
            button.click()
        if taken.value.failure() is None or not left:
            break
        del reader.errors[before:]
    return Path(taken.value.path()).read_text()
