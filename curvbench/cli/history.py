"""The files of airspeed velocity for a user's folder: its configuration, and the suite as benchmarks."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from curvbench.cli.project import Project
from curvbench.identity import version

FOLDER = "asv_bench"
TEMPLATE = Path(__file__).parent / "templates" / "benchmarks.py"


def files(project: Project) -> dict[Path, str]:
    """The files by path, relative to the project's folder.

    Raises:
        ValueError: the suite's name is no name of a module, by which asv calls its benchmarks.
    """
    name = project.suite.stem
    if not name.isidentifier():
        raise ValueError(f"asv calls benchmarks by module, and {name!r} is no name of one: rename {project.suite}")
    return {
        Path("asv.conf.json"): json.dumps(configuration(project), indent=4) + "\n",
        Path(FOLDER, "__init__.py"): '"""Benchmarks for airspeed velocity."""\n',
        Path(FOLDER, f"{name}.py"): TEMPLATE.read_text().replace("<suite>", project.suite.as_posix()),
    }


def configuration(project: Project) -> dict[str, Any]:
    """The content of ``asv.conf.json``: a package is built at every revision, other folders are run as they are."""
    name = re.escape(project.suite.stem)
    return {
        "version": 1,
        "project": project.folder.name,
        "repo": "/".join([".."] * project.below.count("/")) or ".",
        "branches": ["HEAD"],
        "dvcs": "git",
        **(_built(project) if project.kind == "package" else {"environment_type": "existing"}),
        "benchmark_dir": FOLDER,
        "env_dir": ".asv/env",
        "results_dir": ".asv/results",
        "html_dir": ".asv/html",
        "default_benchmark_timeout": 3600,
        "regressions_thresholds": {rf"{name}\.track_(flops|memory).*": 1e-6, rf"{name}\.track_.*": 2e-4},
    }


def _built(project: Project) -> dict[str, Any]:
    """How asv builds and installs a revision, with the curvbench that the history began with."""
    curvbench = "==".join(filter(None, ("curvbench", version())))
    return {
        **({"repo_subdir": project.below.rstrip("/")} if project.below else {}),
        "environment_type": "virtualenv",
        "pythons": ["{}.{}".format(*sys.version_info)],
        "build_command": ["python -m pip wheel --no-deps -w {build_cache_dir} {build_dir}"],
        "install_command": [f"in-dir={{env_dir}} python -m pip install {{wheel_file}} {curvbench}"],
    }
