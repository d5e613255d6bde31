"""Execute the workflows as GitHub would: ``python scripts/try_workflow.py [package dependencies files project]``.

For each kind of folder a fresh git repository is made, with the workflow that ``curvbench init --ci`` writes there, or,
for ``project``, a clone of this one with its own workflow. The ``run:`` steps of the jobs are executed literally by
bash. A harmless change has to pass and planted changes have to fail. What stands in for GitHub:

- ``actions/checkout`` clones the repository, ``actions/setup-python`` refuses cache keys that match no file and a
  Python other than the one at hand, and ``actions/upload-artifact`` refuses paths that match nothing;
- ``pip`` installs nothing: it links the packages of a folder into the place where pip would put them, and holds named
  distributions against the versions at hand;
- ``runs-on``, ``timeout-minutes``, ``permissions`` and ``concurrency`` are ignored.

Anything else in a job is refused. Of the project's own workflow only the jobs ``gate`` and ``times`` are executed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = Path(".github", "workflows", "curvbench.yml")
AUTHOR = ("-c", "user.name=A User", "-c", "user.email=user@example.org")
OK, FAILED, SKIPPED = "success", "failure", "skipped"
Context = dict[str, Any]

# --- expressions ------------------------------------------------------------------------------------------

WORDS = re.compile(r"'(?:[^']|'')*'|&&|\|\||!=|==|!|[()]|[\w.*-]+")
OPERATORS = {"&&": "and", "||": "or", "!": "not", "true": "True", "false": "False"}


def evaluated(expression: str, context: Context, functions: Mapping[str, Callable[..., Any]]) -> Any:
    """The value of an expression of GitHub Actions; raises ValueError for what is not known here."""
    words = WORDS.findall(expression)
    if re.sub(r"\s", "", "".join(words)) != re.sub(r"\s", "", expression):
        raise ValueError(f"cannot read the expression {expression!r}")
    return eval(" ".join(_python(word, context, functions) for word in words), {"__builtins__": {}}, dict(functions))


def _python(word: str, context: Context, functions: Mapping[str, Any]) -> str:
    if word in OPERATORS:
        return OPERATORS[word]
    if word.startswith("'"):
        return repr(word[1:-1].replace("''", "'"))
    if word in functions or not re.match(r"[A-Za-z]", word):
        return word
    value: Any = context
    for part in word.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ValueError(f"no stand-in for {word}")
        value = value[part]
    return repr(value)


def interpolated(text: Any, context: Context, functions: Mapping[str, Callable[..., Any]]) -> str:
    """A text with its ``${{ expressions }}`` replaced."""
    text = str(text).lower() if isinstance(text, bool) else str(text)
    return re.sub(r"\$\{\{(.*?)\}\}", lambda match: str(evaluated(match[1], context, functions)), text)


# --- a job ------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """A job on its way. ``repository``: what is checked out, at ``commits`` by the names that GitHub has for them."""

    name: str
    content: Mapping[str, Any]
    repository: Path
    context: Context
    folder: Path
    outcomes: dict[str, dict[str, str]] = field(default_factory=dict)
    status: str = OK
    used: list[str] = field(default_factory=list)

    @property
    def workspace(self) -> Path:
        """The folder in which steps run."""
        return self.folder / "workspace"

    @property
    def summary(self) -> Path:
        """The file of the summaries of all steps."""
        return self.folder / "summary.md"

    def functions(self) -> dict[str, Callable[..., Any]]:
        """The functions that expressions may call."""

        def hash_files(*patterns: str) -> str:
            patterns = tuple(re.sub(r"\*\*$", "**/*", pattern) for pattern in patterns)  # as GitHub reads it
            return "a hash" if any(path.is_file() for p in patterns for path in self.workspace.glob(p)) else ""

        return {
            "always": lambda: True,
            "cancelled": lambda: False,
            "success": lambda: self.status == OK,
            "failure": lambda: self.status != OK,
            "hashFiles": hash_files,
        }

    def text(self, text: Any) -> str:
        """A text with its expressions replaced."""
        return interpolated(text, self.context | {"steps": self.outcomes}, self.functions())

    def holds(self, condition: Any) -> bool:
        """Whether a step or job with this ``if:`` is to run."""
        expression = re.sub(r"^\s*\$\{\{(.*)\}\}\s*$", r"\1", str(condition))
        if not re.search(r"\b(always|success|failure|cancelled)\(", expression):
            expression = f"success() && ({expression})"
        return bool(evaluated(expression, self.context | {"steps": self.outcomes}, self.functions()))

    def run(self) -> str:
        """Execute the job, and return its outcome."""
        unknown = set(self.content) - {*"if runs-on timeout-minutes permissions steps strategy defaults".split()}
        if unknown:
            raise ValueError(f"job {self.name}: no stand-in for {', '.join(sorted(unknown))}")
        if "if" in self.content and not self.holds(self.content["if"]):
            return SKIPPED
        self.workspace.mkdir(parents=True)
        for step in self.content["steps"]:
            self._step(step)
        return self.status

    def _step(self, step: Mapping[str, Any]) -> None:
        name = step.get("name") or step.get("uses") or step["run"].splitlines()[0]
        began, outcome = time.monotonic(), SKIPPED
        if self.holds(step.get("if", "success()")):
            outcome = OK if self._execute(step) else FAILED
        self.status = FAILED if outcome == FAILED else self.status
        self.outcomes |= {step["id"]: {"outcome": outcome, "conclusion": outcome}} if "id" in step else {}
        print(f"    {outcome:8} {self.name}: {name} ({time.monotonic() - began:.0f} s)", flush=True)

    def _execute(self, step: Mapping[str, Any]) -> bool:
        unknown = set(step) - {"name", "id", "if", "uses", "with", "run", "env", "working-directory"}
        if unknown:
            raise ValueError(f"job {self.name}: no stand-in for {', '.join(sorted(unknown))} of a step")
        if "uses" not in step:
            return self._bash(step)
        action, given = step["uses"], {k: self.text(v) for k, v in step.get("with", {}).items()}
        if action.partition("@")[0] not in STAND_INS:
            raise ValueError(f"no stand-in for uses: {action}")
        self.used.append(action)
        fault = STAND_INS[action.partition("@")[0]](self, given)
        print(textwrap.indent(fault, "      "), end="\n" if fault else "")
        return not fault

    def _bash(self, step: Mapping[str, Any]) -> bool:
        """Run a step as GitHub's default shell does."""
        file = self.folder / "step.sh"
        file.write_text(self.text(step["run"]))
        folder = step.get("working-directory", self.content.get("defaults", {}).get("run", {}).get("working-directory"))
        given = self.context["env"] | step.get("env", {})
        environment = self.environment() | {name: self.text(value) for name, value in given.items()}
        place = self.workspace / self.text(folder or ".")
        log = self.folder / "log"
        with log.open("w") as opened:
            done = subprocess.run(["bash", "-e", file], cwd=place, env=environment, stdout=opened, stderr=opened)
        if done.returncode:
            print(textwrap.indent("\n".join(log.read_text().splitlines()[-12:]), "      | "))
        return done.returncode == 0

    def environment(self) -> dict[str, str]:
        """The environment of a step: GitHub's variables, and the commands that stand in, in front of all others."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        tools = stand_in_tools(self.folder)
        return kept | {
            "PATH": f"{tools}{os.pathsep}{kept['PATH']}",
            "HOME": str(self.folder),
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "GITHUB_WORKSPACE": str(self.workspace),
            "GITHUB_STEP_SUMMARY": str(self.summary),
            "RUNNER_TEMP": str(self.folder),
        }


# --- what stands in ---------------------------------------------------------------------------------------


def checkout(job: Job, given: Mapping[str, str]) -> str:
    """``actions/checkout``: a clone at the commit that GitHub would take."""
    target = job.workspace / given.get("path", ".")
    git(job.repository, "worktree", "prune")
    ref = given.get("ref") or job.context["github"]["sha"]
    subprocess.run(["git", "clone", "-q", "--no-local", str(job.repository), str(target)], check=True)
    git(target, "checkout", "-q", ref)
    return ""


def setup_python(job: Job, given: Mapping[str, str]) -> str:
    """``actions/setup-python``: refuses what would fail on GitHub, and what is not at hand."""
    wanted = given.get("python-version", "")
    here = "{}.{}".format(*sys.version_info)
    if wanted != here:
        return f"the workflow wants Python {wanted}, at hand is {here}"
    patterns = given.get("cache-dependency-path", "**/requirements.txt\n**/pyproject.toml").split("\n")
    matches = [path for pattern in patterns if pattern for path in job.workspace.glob(pattern)]
    if given.get("cache") and not matches:
        return f"no file matches {patterns}, from which the key of the cache is made"
    missing = [p for p in patterns if p and "cache-dependency-path" in given and not [*job.workspace.glob(p)]]
    return f"a key of the cache is no file: {missing}" if missing and given.get("cache") else ""


def upload_artifact(job: Job, given: Mapping[str, str]) -> str:
    """``actions/upload-artifact``: every path has to match something."""
    missing = [p for p in given["path"].split("\n") if p and not [*job.workspace.glob(p)]]
    return f"nothing to upload: {missing}" if missing else ""


STAND_INS: Mapping[str, Callable[[Job, Mapping[str, str]], str]] = {
    "actions/checkout": checkout,
    "actions/setup-python": setup_python,
    "actions/upload-artifact": upload_artifact,
}
PIP = """
import argparse, importlib.metadata, pathlib, re, sys
from packaging.requirements import Requirement

parser = argparse.ArgumentParser()
parser.add_argument("command", choices=["install"])
parser.add_argument("what", nargs="*")
for name in ("--index-url", "--target"):
    parser.add_argument(name)
parser.add_argument("-r", action="append", default=[])
for name in ("--no-deps", "--upgrade", "--pre", "-q", "-e"):
    parser.add_argument(name, action="store_true")
given = parser.parse_intermixed_args()
site = pathlib.Path(given.target or SITE)
site.mkdir(parents=True, exist_ok=True)
names = [line for file in given.r for line in pathlib.Path(file).read_text().splitlines() if line.strip()]
for text in [*given.what, *names]:
    folder = pathlib.Path(re.sub(r"\\[.*\\]$", "", text))
    if not re.match(r"[./]", text):
        requirement = Requirement(text)
        version = importlib.metadata.version(requirement.name)
        if not requirement.specifier.contains(version.partition("+")[0], prereleases=True):
            sys.exit(f"stand-in for pip: {text} is wanted, {version} is at hand")
        continue
    if not (folder / "pyproject.toml").is_file() and not (folder / "setup.py").is_file():
        sys.exit(f"ERROR: {text} does not appear to be a Python project")
    source = (folder / "src" if (folder / "src").is_dir() else folder).resolve()
    for package in source.iterdir():
        if (package / "__init__.py").is_file() and package.name != "tests":
            link = site / package.name
            link.unlink(missing_ok=True)
            link.symlink_to(package)
    print(f"stand-in for pip: the packages of {text} are linked into {site}")
"""


def stand_in_tools(folder: Path) -> Path:
    """The folder of ``pip``, ``python`` and ``curvbench`` for a job: they see what the stand-in for pip has linked."""
    tools, site = folder / "bin", folder / "site"
    if tools.is_dir():
        return tools
    tools.mkdir()
    site.mkdir()
    (site / "curvbench").symlink_to(ROOT / "curvbench")
    (tools / "pip.py").write_text(f"SITE = {str(site)!r}\n{PIP}")
    path = f'PYTHONPATH="${{PYTHONPATH:+$PYTHONPATH:}}{site}"'
    python = shlex.quote(sys.executable)
    for name, command in (
        ("python", python),
        ("curvbench", f"{python} -P -m curvbench"),  # -P: a console script does not see the working directory
        ("pip", f"{python} {tools / 'pip.py'}"),
    ):
        (tools / name).write_text(f'#!/bin/sh\n{path} exec {command} "$@"\n')
        (tools / name).chmod(0o755)
    return tools


def git(folder: Path, *arguments: str) -> str:
    """The output of git in a folder."""
    command = ["git", "-C", str(folder), *AUTHOR, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


# --- repositories -----------------------------------------------------------------------------------------

PROBE = (ROOT / "curvbench" / "cli" / "templates" / "my_suite.py").read_text().partition("\nSUITE = ")[0]
SUITE = """
import curvbench as cb
from mine{module} import LayerMean

SUITE = cb.Suite(
    "A probe of one's own",
    {{
        "default": cb.Preset(
            [cb.problem("mlp", hidden=8, depth=2, samples=16)],
            [LayerMean()],
            dtype="float64",
            meters=("flops", "memory", "error"),
        ),
        "times": cb.Preset([cb.problem("mlp", hidden=8, samples=16)], [LayerMean()], meters=("clock",)),
    }},
)
"""
BUILT = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n\n'
NAMED = '[project]\nname = "mine"\nversion = "1"\ndependencies = ["numpy>=1.26"]\n'
FOLDERS = {  # kind: the probe's file, the suite's file, other files
    "package": ("src/mine/probe.py", "suites/gate.py", {"pyproject.toml": BUILT + NAMED, "src/mine/__init__.py": ""}),
    "dependencies": ("mine.py", "curvbench_suite.py", {"pyproject.toml": NAMED}),
    "files": ("mine.py", "benchmarks/curves.py", {}),
}
STEP = "        return state.solve(gradient, self.damping)\n"
MEAN = "        return Diagonal(torch.cat(means).to(batch.dtype))\n"
OWN = "curvbench/probes/diag.py"


@dataclass(frozen=True)
class Change:
    """A change of the probe's file, and how the jobs that are executed with it have to end."""

    name: str
    old: str
    new: str
    ends: Mapping[str, str]


SLOW = "        sorted(range(40_000), key=lambda k: -k)\n"
CHANGES = (
    Change("harmless", STEP, STEP.replace("return", "step =") + "        return step\n", {"gate": OK, "times": OK}),
    Change("wrong", MEAN, MEAN.replace("cat(means)", "cat(means[::-1])"), {"gate": FAILED}),
    Change("dearer", STEP, "        gradient * gradient\n" + STEP, {"gate": FAILED}),
    Change("slower", STEP, SLOW + STEP, {"gate": OK, "times": FAILED}),
)


def repository(kind: str, folder: Path) -> Path:
    """A repository as a user has it, with the workflow that ``init --ci`` writes and the baseline that it names."""
    probe, suite, others = FOLDERS[kind]
    module = ".probe" if kind == "package" else ""
    for name, text in {probe: PROBE, suite: SUITE.format(module=module), ".gitignore": "results/\n", **others}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "A probe of one's own")
    path = os.pathsep.join(map(str, (ROOT, folder / "src", folder)))
    with tempfile.TemporaryDirectory() as place:
        tools = stand_in_tools(Path(place))
        told = subprocess.run(
            ["curvbench", "init", "--ci"],
            cwd=folder,
            env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": path},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        commands = "\n".join(told.splitlines()[1:]).replace("git commit", f"git {shlex.join(AUTHOR)} commit -q")
        environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": path}
        subprocess.run(["bash", "-e", "-c", commands], cwd=folder, env=environment, check=True, capture_output=True)
    return folder


def clone(folder: Path) -> Path:
    """A clone of this checkout with what is not committed."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    files = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", "As it stands")
    return folder


# --- a workflow -------------------------------------------------------------------------------------------


def executed(repo: Path, base: str, jobs: list[str]) -> Iterator[tuple[Job, str]]:
    """Jobs of the workflow of ``repo`` as a pull request from ``base`` to its HEAD starts them."""
    workflow = yaml.safe_load((repo / WORKFLOW).read_text())
    sha = git(repo, "rev-parse", "HEAD")
    event = {"pull_request": {"base": {"sha": base}}}
    github = {"event_name": "pull_request", "sha": sha, "ref": "refs/pull/1/merge", "event": event}
    for name in jobs:
        content = workflow["jobs"][name]
        with tempfile.TemporaryDirectory() as folder:
            context = {"github": github, "env": workflow.get("env", {}), "matrix": chosen(content)}
            job = Job(name, content, repo, context, Path(folder))
            yield job, job.run()


def chosen(content: Mapping[str, Any]) -> dict[str, str]:
    """The entries of a job's matrix that are at hand: this version of Python, and the first of other axes."""
    here = "{}.{}".format(*sys.version_info)
    matrix = content.get("strategy", {}).get("matrix", {})
    return {name: here if here in values else values[0] for name, values in matrix.items()}


def tried(kind: str, jobs: list[str]) -> int:
    """Try a kind of folder with every change that its probe can have, and return the number of surprises."""
    surprises = 0
    with tempfile.TemporaryDirectory() as place:
        repo = clone(Path(place, "repo")) if kind == "project" else repository(kind, Path(place, "repo"))
        base = git(repo, "rev-parse", "HEAD")
        file = repo / (OWN if kind == "project" else FOLDERS[kind][0])
        original = file.read_text()
        for change in (change for change in CHANGES if change.old in original):
            wanted = {job: end for job, end in change.ends.items() if job in jobs}
            file.write_text(original.replace(change.old, change.new))
            git(repo, "commit", "-qam", change.name)
            print(f"{kind}, {change.name}:", flush=True)
            surprises += sum(surprising(job, end, wanted) for job, end in executed(repo, base, [*wanted]))
            git(repo, "reset", "-q", "--hard", base)
    return surprises


def surprising(job: Job, outcome: str, wanted: Mapping[str, str]) -> bool:
    """Whether a job ended otherwise than it had to, or without the verdict of a gate; says so with the verdict."""
    answer = job.summary.read_text().splitlines()[0] if job.summary.is_file() else "no summary"
    is_right = outcome == wanted[job.name] and answer.endswith({OK: "passed", FAILED: "cells fail"}[outcome])
    print(f"  {'as it has to' if is_right else 'SURPRISE'}: {job.name} ended in {outcome}; {answer}", flush=True)
    return not is_right


def main(arguments: list[str] | None = None) -> int:
    """Try the kinds that are named, and say what stood in; 1 means that a job ended otherwise than it had to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(FOLDERS)} or project; all without it")
    parser.add_argument("--jobs", default="gate,times", help="The jobs that are executed, with commas.")
    given = parser.parse_args(arguments)
    kinds = given.kinds or [*FOLDERS, "project"]
    if unknown := set(kinds) - {*FOLDERS, "project"}:
        parser.error(f"no kind {', '.join(sorted(unknown))}: expected {', '.join(FOLDERS)} or project")
    print(f"stand-ins for uses: {', '.join(STAND_INS)}; for pip install: links, and the versions at hand")
    surprises = sum(tried(kind, given.jobs.split(",")) for kind in kinds)
    print(f"{surprises} surprises")
    return int(surprises > 0)


if __name__ == "__main__":
    sys.exit(main())
