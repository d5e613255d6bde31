"""The verb ``dashboard``: results in a browser."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import click

from curvbench.cli.verbs import BadInput, Folder, option
from curvbench.shipped import DASHBOARD


@click.command()
@click.argument("results", type=Folder(path_type=Path), required=False)
@option("--port", type=click.IntRange(1, 65535), help="Port on loopback; without it, the first free one from 8501 on.")
def dashboard(results: Path | None, port: int | None) -> None:
    """Look at RESULTS in a browser on this machine; without RESULTS at ./results, or else at the shipped sample."""
    if results is not None and not results.is_dir():
        raise BadInput(f"no results at {str(results)!r}: expected a folder that `curvbench run` has written")
    if results is None and Path("results").is_dir():
        results = Path("results")
    app = DASHBOARD / "app.py"
    if any(importlib.util.find_spec(name) is None for name in ("streamlit", "plotly")):
        raise BadInput("the dashboard needs streamlit and plotly: pip install 'curvbench[dashboard]'")
    from streamlit.web.cli import main as streamlit

    if results is not None:
        os.environ["CURVBENCH_RESULTS"] = str(results.resolve())
    sys.path.insert(0, str(app.parent))  # as Streamlit does
    guard = importlib.import_module("guard")
    if weak := [name for name in guard.EMPTY if name in guard.switched_off()]:
        raise BadInput(f"{', '.join(weak)} in .streamlit/config.toml lets other sites in: remove it, here and at home")
    importlib.import_module("warm").main()
    # A hundred small files make a page, and pages in the making shall not delay each of them by the usual 5 ms.
    sys.setswitchinterval(0.0005)
    options = {"server.address": "127.0.0.1", "server.headless": "true", "browser.gatherUsageStats": "false"}
    options |= {
        "client.toolbarMode": "viewer",
        "server.fileWatcherType": "none",
        "runner.postScriptGC": "false",  # it would follow each look at the folder; pages collect their own garbage
        **{name: str(value).lower() for name, value in guard.FLAGS.items()},
        **({"server.port": str(port)} if port else {}),
    }
    streamlit(["run", str(app), *(word for key, value in options.items() for word in (f"--{key}", value))])
