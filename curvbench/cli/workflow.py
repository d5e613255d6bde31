"""A workflow of GitHub Actions for a user's folder: the gate, and its times where the suite measures any."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from curvbench.cli.project import Project
from curvbench.identity import version
from curvbench.spec import Suite

FILE = Path(".github", "workflows", "curvbench.yml")
TEMPLATES = Path(__file__).parent / "templates"
CLOCK = "clock"  # the meter that takes times
UNTIMED = "# A preset `times` with the meter `clock` in the suite, and `init --ci` again, add a job that compares times"
NEEDED = (  # pip itself has no option for what a pyproject.toml without a builder names
    "import sys, tomllib; print(*tomllib.load(open(sys.argv[1], 'rb'))['project'].get('dependencies', []), sep='\\n')"
)
Values = Mapping[str, str | Sequence[str]]


def rendered(project: Project, suite: Suite, baselines: str, branch: str) -> str:
    """The text of the workflow; ``baselines``: the folder of the baselines, relative to the project's folder."""
    preset = timed(suite)
    gate: dict[str, str | Sequence[str]] = {
        "times_too": ["# times: head and base of a pull request, measured in turn." if preset else UNTIMED],
        "branch": json.dumps(branch),
        "torch": json.dumps(f"torch=={importlib.metadata.version('torch').partition('+')[0]}"),
        "curvbench": json.dumps("==".join(filter(None, ("curvbench", version())))),
        "suite": json.dumps(project.suite.as_posix()),
        "baselines": json.dumps(baselines),
        "path": ["PYTHONPATH: ."] if project.kind != "package" else [],
        "directory": ["defaults:", f"  run: {{working-directory: {json.dumps(project.below)}}}"] * bool(project.below),
        "python": json.dumps("{}.{}".format(*sys.version_info)),
        "below": project.below,
        "keys": keys(project, ""),
        "install": installed(project, ""),
    }
    text = _filled(TEMPLATES / "gate.yml", gate)
    if preset:
        text += _filled(TEMPLATES / "times.yml", gate | _times(project, preset))
    return text


def timed(suite: Suite) -> str:
    """The preset whose times are compared: ``times``, or ``default`` if it has a clock. Empty means that none has."""
    names = [name for name in ("times", "default") if name in suite.presets and CLOCK in suite.presets[name].meters]
    return names[0] if names else ""


def keys(project: Project, checkout: str) -> list[str]:
    """The files whose contents are the key of pip's cache; the workflow is one, which names the versions."""
    return [f"{checkout}{FILE.as_posix()}", *(f"{checkout}{project.below}{name}" for name in project.manifests)]


def installed(project: Project, folder: str) -> list[str]:
    """The commands that install curvbench and what the project needs; ``folder`` is the project's, with a slash."""
    what = ['pip install "$CURVBENCH"']
    what += [f"-r {shlex.quote(f'{folder}requirements.txt')}"] if project.requirements else []
    what += [shlex.quote(f"./{folder}" if folder else ".")] if project.kind == "package" else []
    if project.kind != "dependencies":
        return [" ".join(what)]
    named = shlex.quote(f"{folder}pyproject.toml")
    return [f'python -c "{NEEDED}" {named} > needed.txt', " ".join([*what, "-r needed.txt"])]


def _times(project: Project, preset: str) -> dict[str, str | Sequence[str]]:
    """The values of the job that compares times: the packages of both sides stand in folders of their own."""
    folders = {side: shlex.quote(f"./{side}/{project.below}") for side in ("base", "head")}
    sides = {side: f"pip install --no-deps --target sides/{side} {folder}" for side, folder in folders.items()}
    is_package = project.kind == "package"
    return {
        "preset": preset,
        "path": 'PYTHONPATH="$GITHUB_WORKSPACE/sides/$1" ' if is_package else "",
        "keys": keys(project, "head/"),
        "install": [*installed(project, f"head/{project.below}"), *([sides["head"]] if is_package else [])],
        "inside": shlex.quote(f"/{project.below}"),
        "base": f"{sides['base']} && " if is_package else "",
    }


def _filled(template: Path, values: Values) -> str:
    """A template with its ``<names>`` replaced; a name alone on its line becomes any number of lines."""

    def lines(match: re.Match[str]) -> str:
        content = values[match[2]]
        return "".join(f"{match[1]}{line}\n" for line in ([content] if isinstance(content, str) else content))

    text = re.sub(r"^( *)<(\w+)>\n", lines, template.read_text(), flags=re.MULTILINE)
    return re.sub(r"<(\w+)>", lambda match: "".join(values[match[1]]), text)
