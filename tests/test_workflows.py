"""The workflows as GitHub would execute them, and the version that the files of a release agree on."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")}
STEPS = [(name, step) for name, flow in WORKFLOWS.items() for job in flow["jobs"].values() for step in job["steps"]]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def github() -> ModuleType:
    return script("try_workflow")


@pytest.mark.long
def test_the_gate_of_a_package_passes_and_fails_as_it_has_to(
    github: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A harmless change and a wrong one; the script has more changes, other folders and times."""
    monkeypatch.setattr(github, "CHANGES", github.CHANGES[:2])
    assert github.tried("package", ["gate"]) == 0
    out = capsys.readouterr().out
    assert "gate ended in success; ### curvbench check: passed" in out
    assert "gate ended in failure; ### curvbench check: 1 of 1 cells fail" in out


def job(github: ModuleType, folder: Path, *steps: dict[str, object], **content: object) -> object:
    context = {"github": {"event_name": "push", "sha": "HEAD"}, "env": {}, "matrix": {}}
    return github.Job("j", {"steps": list(steps), **content}, folder, context, folder / "job")


def test_a_job_goes_on_as_githubs_would(github: ModuleType, tmp_path: Path) -> None:
    made = job(
        github,
        tmp_path,
        {"id": "a", "run": "echo here > file\nmkdir sub\ntouch sub/x\nfalse\necho later > file"},
        {"run": "touch skipped"},
        {"if": "always() && steps.a.outcome != 'skipped'", "run": "touch always"},
        {"if": "failure() && hashFiles('sub/**') != ''", "run": "touch failed"},
        {"if": "always() && (github.event_name == 'pull_request' || !success() == false)", "run": "touch no"},
    )
    assert made.run() == "failure"
    assert {path.name for path in made.workspace.iterdir()} == {"file", "sub", "always", "failed"}
    assert (made.workspace / "file").read_text() == "here\n", "bash -e"
    assert job(github, tmp_path, **{"if": "github.event_name == 'pull_request'"}).run() == "skipped"


REFUSED = (
    ({"uses": "someone/else@v1"}, "no stand-in for uses: someone/else@v1"),
    ({"run": "true", "continue-on-error": True}, "no stand-in for continue-on-error of a step"),
    ({"run": "${{ secrets.TOKEN }}"}, "no stand-in for secrets.TOKEN"),
    ({"if": "fromJSON('x') + 1", "run": "true"}, "cannot read the expression"),
)


@pytest.mark.parametrize(("step", "expected"), REFUSED)
def test_what_has_no_stand_in_is_refused(
    step: dict[str, object], expected: str, github: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        job(github, tmp_path, step).run()


def test_stand_ins_refuse_what_github_refuses(github: ModuleType, tmp_path: Path) -> None:
    here = "{}.{}".format(*sys.version_info)
    uses = {"uses": "actions/setup-python@v5"}
    for given, outcome in (
        ({"python-version": "2.7"}, "failure"),
        ({"python-version": here}, "success"),
        ({"python-version": here, "cache": "pip"}, "failure"),
        ({"python-version": here, "cache": "pip", "cache-dependency-path": "none.toml"}, "failure"),
    ):
        assert job(github, tmp_path, uses | {"with": given}).run() == outcome
        shutil.rmtree(tmp_path / "job")
    for text in ("pip install numpy==1.0", "pip install ."):
        assert job(github, tmp_path, {"run": text}).run() == "failure"
        shutil.rmtree(tmp_path / "job")


@pytest.mark.parametrize(("name", "step"), [pair for pair in STEPS if "run" in pair[1]])
def test_steps_are_bash(name: str, step: dict[str, str]) -> None:
    text = re.sub(r"\$\{\{.*?\}\}", "x", step["run"])
    assert subprocess.run(["bash", "-n", "-c", text], check=False).returncode == 0


def test_the_scheduled_job_lifts_the_bound_of_torch(tmp_path: Path) -> None:
    (lift,) = [step["run"] for name, step in STEPS if name == "next-torch" and step.get("name") == "Lift the bound"]
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    subprocess.run(["bash", "-ec", lift], cwd=tmp_path, check=True, capture_output=True)
    bounds = [tomllib.loads((place / "pyproject.toml").read_text())["project"] for place in (ROOT, tmp_path)]
    (before,), (after,) = ([text for text in p["dependencies"] if text.startswith("torch")] for p in bounds)
    assert before.startswith(after + ",<") and re.fullmatch(r"torch>=[\d.]+", after)


def test_every_python_of_the_metadata_is_in_the_matrix() -> None:
    least = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    for name in ("tests", "gate"):
        assert WORKFLOWS["curvbench"]["jobs"][name]["strategy"]["matrix"]["python"] == [least, "3.12", "3.13"]


def test_only_the_job_that_publishes_may_have_a_token() -> None:
    for name, flow in WORKFLOWS.items():
        assert flow["permissions"] == {"contents": "read"}
        rights = {key for key, content in flow["jobs"].items() if "permissions" in content}
        assert rights == ({"publish"} if name == "release" else set())


# --- releases ---------------------------------------------------------------------------------------------

CITATION = "version: 0.2.0\ndate-released: 2026-12-01\n"
CHANGELOG = "# Changelog\n\n## Unreleased\n\n## 0.2.0 - 2026-12-01\n\n- New.\n\n## 0.1.0 - 2026-01-01\n\n- Old.\n"


def test_the_version_is_one() -> None:
    assert script("release").disagreements(ROOT) == []


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str, str, str], Path]:
    def write(version: str, changelog: str, citation: str) -> Path:
        (tmp_path / "pyproject.toml").write_text(f'[project]\nversion = "{version}"\n')
        (tmp_path / "CHANGELOG.md").write_text(changelog)
        (tmp_path / "CITATION.cff").write_text(citation)
        return tmp_path

    return write


def test_a_release_prints_its_section(
    written: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = script("release")
    assert release.main(["--tag", "v0.2.0"], written("0.2.0", CHANGELOG, CITATION)) == 0
    assert capsys.readouterr().out == "- New.\n"


FAULTS = (
    (("0.3.0", CHANGELOG, CITATION), "CITATION.cff has version 0.2.0, pyproject.toml has 0.3.0"),
    (("0.3.0", CHANGELOG, CITATION.replace("0.2", "0.3")), "has 0.2.0 as its newest version, not 0.3.0"),
    (("0.2", CHANGELOG, CITATION.replace("0.2.0", "0.2")), "which is no X.Y.Z"),
    (("0.2.0", CHANGELOG, CITATION.replace("2026", "2025")), "has date '2025-12-01', CHANGELOG.md '2026-12-01'"),
    (("0.2.0", CHANGELOG.replace(" - 2026-12-01", ""), "version: 0.2.0\n"), "'## 0.2.0' has no date"),
    (("0.2.0", CHANGELOG.replace("- New.\n", ""), CITATION), "says nothing of 0.2.0"),
    (("0.2.0", CHANGELOG.replace("Unreleased\n", "Unreleased\n\n- More.\n"), CITATION), "under 'Unreleased' belong"),
    (("0.2.0", CHANGELOG.replace("0.1.0", "0.2.0"), CITATION), "CHANGELOG.md has 0.2.0 twice"),
    (("0.2.0", CHANGELOG, CITATION), "the tag is v0.2.1"),
)


@pytest.mark.parametrize(("files", "expected"), FAULTS, ids=[text for _, text in FAULTS])
def test_a_release_says_what_is_missing(
    files: tuple[str, str, str],
    expected: str,
    written: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tag = "v0.2.1" if "the tag" in expected else "v0.2.0"
    assert script("release").main(["--tag", tag], written(*files)) == 1
    assert expected in capsys.readouterr().err
