"""The verb ``init``: write files to begin from."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from curvbench.cli.verbs import BadInput, option, users_fault

if TYPE_CHECKING:
    from curvbench.cli.project import Project

TEMPLATES = Path(__file__).parents[1] / "templates"
SUITE = ("my_suite.py",)
PROBLEMS = {"module": ("my_module.py",), "hf": ("my_language_model.py",), "data": ("my_table.py", "my_table.csv")}
BASELINES = ("baselines", "data/baselines")  # where baselines are looked for; the first is made


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path())
@option("--problem", type=click.Choice([*PROBLEMS]), help="A model of one's own, one of transformers, or a table.")
@option("--ci", is_flag=True, help="A workflow of GitHub Actions that holds FOLDER's suite against a baseline.")
@option("--asv", is_flag=True, help="A history of FOLDER's suite with airspeed velocity.")
@option("--suite", type=click.Path(path_type=Path), metavar="FILE", help="The suite for --ci or --asv, if it has more.")
def init(folder: Path, problem: str | None, ci: bool, asv: bool, suite: Path | None) -> None:
    """Write my_suite.py into FOLDER (here, if none is given): a probe and a suite that run, to be changed.

    With --problem write a file for `curvbench measure`: a plain module, a model of transformers, or data in a CSV or an
    npz. With --ci or --asv write files for a suite that FOLDER has. A file that is there is never replaced.
    """
    if (problem is not None) + ci + asv > 1:
        raise BadInput("--problem, --ci and --asv write different files: give one of them at a time")
    if suite is not None and not (ci or asv):
        raise BadInput("--suite names the suite of --ci or --asv: give one of them too")
    with users_fault():
        if ci or asv:
            from curvbench.cli import project

            content, then = (_ci if ci else _asv)(project.of_folder(folder, suite))
        else:
            names = PROBLEMS[problem] if problem else SUITE
            content = {folder / name: (TEMPLATES / name).read_text(encoding="utf-8") for name in names}
            then = _after(folder / names[0], problem)
        if there := [file for file in content if os.path.lexists(file)]:
            raise BadInput(f"{_shown(there[0])!r} is there already: move it, or name another folder")
        for file, text in content.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text.encode())
    click.echo(then)


def _ci(project: Project) -> tuple[dict[Path, str], str]:
    """The workflow, and what is left to do for it."""
    from curvbench.cli import baselines, workflow
    from curvbench.cli.project import branch
    from curvbench.registry import load_suite

    name, suite = load_suite(project.folder / project.suite)
    there = [folder for folder in BASELINES if baselines.is_folder_of_baselines(project.folder / folder)]
    folder = (there or BASELINES)[0]
    file = project.root / workflow.FILE
    steps = [f"curvbench run {project.suite}", f"curvbench check results --against {folder} --update"]
    steps = [] if any((project.folder / folder / name).glob("torch-*.parquet")) else steps
    added = [str(Path(os.path.relpath(file, project.folder))), *([folder] if steps else []), str(project.suite)]
    steps += [f"git add {shlex.join(added)} && git commit -m 'A gate for curvature code'"]
    text = workflow.rendered(project, suite, folder, branch(project.folder))
    return {file: text}, "\n  ".join([f"{_shown(file)} holds {project.suite} against {folder}; now", *steps])


def _asv(project: Project) -> tuple[dict[Path, str], str]:
    """The files for asv, and the commands that use them."""
    from curvbench.cli import history

    steps = [
        "pip install asv virtualenv && asv machine --yes",
        "asv run -E existing --set-commit-hash $(git rev-parse HEAD)",
        "curvbench export results --all-runs --format asv --output .asv/results",
        "asv publish && asv preview",
    ]
    content = {project.folder / file: text for file, text in history.files(project).items()}
    return content, "\n  ".join([f"{_shown(next(iter(content)))} follows {project.suite}; now", *steps])


def _shown(file: Path) -> str:
    """A file as seen from the working directory."""
    return os.path.relpath(file)


def _after(file: Path, problem: str | None) -> str:
    if problem:
        return f"{file}: now `curvbench measure {file}:{file.stem}`"
    return f"{file}: now `curvbench run {file}`, and `curvbench validate {file}` after a change"
