"""``init --ci`` and ``init --asv``: what is written suits the folder, and no file is replaced."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from curvbench.cli import project
from curvbench.registry import load_file

SUITE = """
from curvbench import Preset, Suite, probe, problem

SUITE = Suite("t", {"default": Preset([problem("mlp")], [probe("diag")], meters=("flops",))PRESETS})
"""
TIMES = ', "times": Preset([problem("mlp")], [probe("diag")], meters=("clock",))'
PACKAGE = '[build-system]\nrequires = ["setuptools"]\n'
NAMED = '[project]\nname = "mine"\nversion = "1"\ndependencies = ["numpy>=1"]\n'
WORKFLOW = Path(".github/workflows/curvbench.yml")
Typed = Callable[..., tuple[int, str, str]]


def folder(files: Mapping[str, str], at: str = ".", presets: str = "") -> Path:
    """A folder with these files and ``gate.py``, a suite, below ``suites``."""
    for name, text in {"suites/gate.py": SUITE.replace("PRESETS", presets), **files}.items():
        Path(at, name).parent.mkdir(parents=True, exist_ok=True)
        Path(at, name).write_text(text)
    return Path(at)


def jobs() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(WORKFLOW.read_text())["jobs"]


def step(job: str, name: str) -> str:
    return next(step["run"] for step in jobs()[job]["steps"] if step.get("name") == name)


def cache(job: str) -> list[str]:
    (made,) = [step["with"] for step in jobs()[job]["steps"] if "setup-python" in step.get("uses", "")]
    return made["cache-dependency-path"].split()


INSTALLED = (
    ("package", {"pyproject.toml": PACKAGE + NAMED}, 'pip install "$CURVBENCH" .', ["pyproject.toml"]),
    ("package", {"setup.py": ""}, 'pip install "$CURVBENCH" .', ["setup.py"]),
    ("files", {"pyproject.toml": "[tool.ruff]\n"}, 'pip install "$CURVBENCH"', ["pyproject.toml"]),
    ("files", {}, 'pip install "$CURVBENCH"', []),
    ("files", {"requirements.txt": ""}, 'pip install "$CURVBENCH" -r requirements.txt', ["requirements.txt"]),
    ("dependencies", {"pyproject.toml": NAMED}, 'pip install "$CURVBENCH" -r needed.txt', ["pyproject.toml"]),
    (
        "dependencies",
        {"pyproject.toml": PACKAGE + NAMED + "[tool.uv]\npackage = false\n"},
        'pip install "$CURVBENCH" -r needed.txt',
        ["pyproject.toml"],
    ),
)


@pytest.mark.parametrize(("kind", "files", "command", "keys"), INSTALLED, ids=lambda part: str(part)[:60])
def test_what_is_installed_suits_the_folder(
    kind: str, files: dict[str, str], command: str, keys: list[str], curvbench: Typed
) -> None:
    folder(files, presets=TIMES)
    assert project.kind(Path()) == kind
    assert curvbench("init", "--ci")[0] == 0
    assert command in step("gate", "Install").splitlines()
    assert cache("gate") == [str(WORKFLOW), *keys] and cache("times") == [f"head/{key}" for key in cache("gate")]
    assert all(Path(key).is_file() for key in cache("gate")), "a key that is no file fails the step on GitHub"
    (line,) = [line for line in step("times", "Install").splitlines() if "CURVBENCH" in line]
    assert line == re.sub(r"-r requirements", "-r head/requirements", command).replace('" .', '" ./head/')
    rounds = step("times", "Five rounds of base and head in turn")
    assert ("--target sides/base ./base/" in rounds) == ("sides/$1" in rounds) == (kind == "package")
    assert (yaml.safe_load(WORKFLOW.read_text())["env"].get("PYTHONPATH") == ".") == (kind != "package")


def test_needed_is_what_the_project_names(curvbench: Typed) -> None:
    folder({"pyproject.toml": NAMED})
    curvbench("init", "--ci")
    subprocess.run(["bash", "-ec", step("gate", "Install").splitlines()[1]], check=True)
    assert Path("needed.txt").read_text() == "numpy>=1\n"


def test_the_answer_says_what_is_left_to_do(curvbench: Typed) -> None:
    folder({})
    out = curvbench("init", "--ci")[1]
    assert [line.strip() for line in out.splitlines()[1:]] == [
        "curvbench run suites/gate.py",
        "curvbench check results --against baselines --update",
        f"git add {WORKFLOW} baselines suites/gate.py && git commit -m 'A gate for curvature code'",
    ]
    WORKFLOW.unlink()
    folder({"data/baselines/gate/torch-2.13.0-flops-2.parquet": ""})
    out = curvbench("init", "--ci")[1]
    assert "--update" not in out and yaml.safe_load(WORKFLOW.read_text())["env"]["BASELINES"] == "data/baselines"


def test_a_suite_without_times_has_no_job_for_them(curvbench: Typed) -> None:
    folder({})
    assert curvbench("init", "--ci")[0] == 0
    assert set(jobs()) == {"gate"} and "`times` with the meter `clock`" in WORKFLOW.read_text()
    assert not re.search(r"<\w+>", WORKFLOW.read_text()), "a name that nothing has replaced"


def test_a_folder_of_a_repository_has_its_workflow_at_the_top(curvbench: Typed) -> None:
    subprocess.run(["git", "init", "-q", "-b", "trunk"], check=True)
    folder({"pyproject.toml": PACKAGE}, "a lib", TIMES)
    code, out, _ = curvbench("init", "a lib", "--ci")
    assert code == 0 and "git add ../.github/workflows/curvbench.yml baselines" in out
    written = yaml.safe_load(WORKFLOW.read_text())
    assert written[True]["push"]["branches"] == ["trunk"]
    assert jobs()["gate"]["defaults"]["run"]["working-directory"] == "a lib/"
    assert "a lib/pyproject.toml" in next(s["with"] for s in jobs()["gate"]["steps"] if "with" in s).values().__str__()
    assert """cd "$1"'/a lib/' &&""" in step("times", "Five rounds of base and head in turn")
    assert "'./head/a lib/'" in step("times", "Install")
    assert jobs()["gate"]["steps"][-1]["with"]["path"].split("\n")[0] == "a lib/results"


def test_no_file_is_replaced(curvbench: Typed) -> None:
    folder({str(WORKFLOW): "mine", "asv.conf.json": "mine"})
    for option, name in (("--ci", str(WORKFLOW)), ("--asv", "asv.conf.json")):
        code, out, err = curvbench("init", option)
        assert (code, out) == (2, "")
        assert err == f"curvbench: '{name}' is there already: move it, or name another folder\n"
        assert Path(name).read_text() == "mine"
    assert not Path("asv_bench").exists(), "all files or none"
    WORKFLOW.unlink()
    WORKFLOW.symlink_to("elsewhere.yml")
    assert curvbench("init", "--ci")[0] == 2 and not WORKFLOW.exists(), "a link to nothing is a file too"


BAD = (
    (("init", "none", "--ci"), "binds SUITE, so that there is nothing to measure: `curvbench init` writes my_suite.py"),
    (("init", "empty", "--asv"), "binds SUITE, so that there is nothing to measure"),
    (("init", "two", "--ci"), "2 files bind SUITE: a.py, b.py; choose one with --suite FILE"),
    (("init", "two", "--ci", "--suite", "c"), "--suite c: there is no such file in"),
    (("init", "two", "--ci", "--suite", "../suites/gate.py"), "there is no such file in"),
    (("init", "wrong", "--ci"), "must bind a curvbench.spec.Suite to SUITE, which is of type int"),
    (("init", "raises", "--ci"), "cannot import"),
    (("init", "damaged", "--ci"), "pyproject.toml' is damaged"),
    (("init", "hyphen", "--asv"), "'my-suite' is no name of one: rename my-suite.py"),
    (("init", "--ci", "--problem", "hf"), "give one of them at a time"),
    (("init", "--ci", "--asv"), "give one of them at a time"),
    (("init", "--suite", "a.py"), "--suite names the suite of --ci or --asv"),
)


@pytest.mark.parametrize(("typed", "expected"), BAD, ids=[" ".join(typed) for typed, _ in BAD])
def test_bad_input_is_one_line_and_two(typed: tuple[str, ...], expected: str, curvbench: Typed) -> None:
    good = SUITE.replace("PRESETS", "")
    files = {"two/a.py": good, "two/b.py": good, "wrong/s.py": "SUITE = 1\n", "raises/s.py": "SUITE = 1 / 0\n"}
    files |= {"damaged/pyproject.toml": "[", "damaged/s.py": good, "hyphen/my-suite.py": good}
    files |= {"empty/broken.py": "SUITE = (", "empty/.venv/s.py": good, "empty/env/s.py": good}
    folder(files | {"empty/env/pyvenv.cfg": "", "empty/inside.py": "def f():\n    SUITE = 1\n"})
    code, out, err = curvbench(*typed)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert expected in err
    assert not list(Path().rglob("*.yml")) and not list(Path().rglob("asv.conf.json"))


def test_one_suite_of_several(curvbench: Typed) -> None:
    folder({"other.py": SUITE.replace("PRESETS", TIMES)})
    assert curvbench("init", "--ci", "--suite", "other")[0] == 0
    assert yaml.safe_load(WORKFLOW.read_text())["env"]["SUITE"] == "other.py"
    assert set(jobs()) == {"gate", "times"}


# --- asv --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [{}, {"pyproject.toml": PACKAGE + NAMED}])
def test_a_history_follows_the_suite_under_the_names_of_exports(files: dict[str, str], curvbench: Typed) -> None:
    folder(files)
    code, out, _ = curvbench("init", "--asv")
    assert code == 0 and out.startswith("asv.conf.json follows suites/gate.py; now\n")
    made = json.loads(Path("asv.conf.json").read_text())
    assert made["environment_type"] == ("virtualenv" if files else "existing") and made["repo"] == "."
    bench = load_file(Path(made["benchmark_dir"], "gate.py"))
    assert bench.params == [["mlp"], ["diag"]]
    follow = bench.track_flops_counted_step
    assert (follow.pretty_name, follow.unit) == ("gate: flops.counted (step)", "FLOP")
    assert all(re.match(pattern, "gate.track_flops_counted_step") for pattern in made["regressions_thresholds"])
