"""The meaning of RUN on the command line: folders and files of rows."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from curvbench import shipped, store
from curvbench.analysis.frames import labels


def locate(run: str, results: Path, all_runs: bool = False) -> list[Path]:
    """The files or folders that ``run`` means.

    ``run`` is a Parquet file or a folder of them, a name that ``store.resolve`` takes, or a git revision of which
    ``results`` holds runs: a hash of at least seven digits, or a name that git knows here. A folder or a revision means
    the latest run of each suite, or, with ``all_runs``, every run.

    Raises:
        ValueError: nothing has this name.
    """
    path = shipped.find(run)
    if run and path.is_dir() and (runs := store.runs_below(path)):
        return runs if all_runs else store.resolve(path)
    if run and path.exists():
        return [path]
    try:
        return store.resolve(run, results)
    except ValueError as error:
        runs = _of_revision(run, results)
        if not runs:
            raise ValueError(f"{error}; {_of_git(run, results)}") from None
    return runs if all_runs else list({folder.parent: folder for folder in runs}.values())


def read(run: str, results: Path, all_runs: bool = False) -> pd.DataFrame:
    """The rows of the files that ``locate`` finds; raises ValueError if there are none."""
    rows = store.load(locate(run, results, all_runs))
    if rows.empty:
        raise ValueError(f"{run} has no rows: no cell of it has ended")
    return rows


def commit(run: Path) -> str:
    """The first digits of the commit of a run, with a plus if files differed from it; empty outside git."""
    environment = store.read_run(run).get("environment", {})
    sha = environment.get("git_sha")
    return sha[:10] + "+" * bool(environment.get("git_dirty")) if sha else ""


def choose(
    rows: pd.DataFrame, probes: Collection[str], problems: Collection[str], metrics: Collection[str]
) -> pd.DataFrame:
    """The rows of some probes and problems, by label or name, and of metrics with some prefixes; empty means all.

    The file in front of a label, as the verb ``run`` takes it, is ignored.
    """
    for kind, texts in (("probe", probes), ("problem", problems)):
        if names := [text.rpartition(".py:")[2] for text in texts]:
            rows = rows[labels(rows, kind).isin(names) | rows[kind].isin(names)]
    metric = rows["metric"].fillna("")
    return rows[metric.str.startswith(tuple(metrics)) | (metric == "")] if metrics else rows


def _of_revision(text: str, results: Path) -> list[Path]:
    """The runs made at a git revision, oldest first."""
    if not results.is_dir():
        return []
    sha = _resolved(text) or (text.lower() if re.fullmatch(r"[0-9a-fA-F]{7,40}", text) else "")
    return [run for run in store.runs_below(results) if sha and commit(run).startswith(sha[:10])]


def _of_git(text: str, results: Path) -> str:
    """The answer of git about a revision that has no run."""
    if sha := _resolved(text):
        return f"git knows it as {sha[:10]}, at which no run in {str(results)!r} was made: measure it there"
    is_inside = _git("rev-parse", "--is-inside-work-tree")
    return "git has no such revision" if is_inside else "and no git checkout here that could know it as a revision"


def _resolved(text: str) -> str:
    return _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{text}^{{commit}}")


def _git(*arguments: str) -> str:
    """The output of git in the working directory; empty if git refuses or is not installed."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, ValueError, subprocess.CalledProcessError):  # ValueError: a null byte
        return ""
