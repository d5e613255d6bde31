"""Suites by name: here, in ./suites, shipped, or of another package; and what other packages bring."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from curvbench import identity, planning, registry, shipped
from curvbench.cli.app import main
from curvbench.identity import libraries

ROOT = Path(__file__).parent.parent
SUITE = "from curvbench import Preset, Suite\nSUITE = Suite('{}', {{'default': Preset([], [])}})\n"
Verb = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def verb(capsys: pytest.CaptureFixture[str]) -> Verb:
    def call(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            main(words)
        return int(end.value.code or 0), "".join(capsys.readouterr())

    return call


def put(file: str, text: str = SUITE) -> Path:
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.format(file))
    return path


def test_the_nearest_suite_of_a_name_is_taken() -> None:
    for name in ("resnet", "suites/resnet", "suites/resnet.py", "resnet.py", "./resnet"):
        assert registry.suite_file(name) == shipped.SUITES / "resnet.py"
    put("suites/resnet.py")
    for name in ("resnet", "suites/resnet"):
        assert registry.load_suite(name)[1].title == "suites/resnet.py"
    put("resnet.py")
    assert registry.load_suite("resnet")[1].title == "resnet.py"
    assert registry.load_suite("suites/resnet")[1].title == "suites/resnet.py"
    put("resnet", "a file without a suffix is no suite")
    assert registry.load_suite("resnet")[1].title == "resnet.py"


def test_folders_of_suites_are_found_in_the_same_order() -> None:
    names = [file.stem for file in sorted((shipped.SUITES / "papers").glob("*.py"))]
    for folder in ("papers", "suites/papers"):
        Path(folder).mkdir(parents=True)  # without a suite in it
        files = registry.suite_files(folder)
        assert files == [Path("suites/papers") / f"{name}.py" for name in names]
        assert all(registry.suite_file(file).is_relative_to(shipped.SUITES) for file in files)
    put("papers/mine.py")
    assert registry.suite_files("papers") == [Path("papers/mine.py")]
    assert registry.suite_files("peers") == [Path("peers")], "the suite, not the folder of its name"


@pytest.mark.parametrize("path", ["../resnet", "/resnet", "suites/../resnet", "resnet/", "bench", "papers", "suites"])
def test_only_names_lead_to_shipped_suites(path: str, empty: Path) -> None:
    (empty / "below").mkdir()
    os.chdir(empty / "below")
    if path == "resnet/":
        assert registry.suite_file(path) == shipped.SUITES / "resnet.py"
    else:
        with pytest.raises(ValueError, match="no suite"):
            registry.suite_file(path)


@pytest.mark.parametrize("file", ["resnet.py", "suites/resnet.py"])
def test_a_file_that_is_no_suite_names_the_command_for_the_shipped_one(file: str, verb: Verb) -> None:
    put(file, "suite = 1\n")
    code, text = verb("validate", "resnet")
    assert code == 2 and text.count("\n") == 1 and f"{file!r} must bind a curvbench.spec.Suite to SUITE" in text
    command = shlex.split(text.strip().rpartition("runs by: ")[2])
    assert command[:2] == ["curvbench", "run"]
    assert registry.suite_file(command[2]) == shipped.SUITES / "resnet.py"
    put("own.py", "suite = 1\n")
    assert "shipped" not in verb("validate", "own")[1]


def test_near_misses_are_of_both_kinds(verb: Verb) -> None:
    put("resnets.py")
    put("suites/resn.py")
    for name in ("resnett", "suites/resnett"):
        code, text = verb("run", name)
        assert code == 2 and text.count("\n") == 1
        assert re.search(r"did you mean .*suites/resn.* \(here\) or .*resnet.* \(shipped\)\?", text)
    assert "did you mean papers/lngd_t1_cifar10, " in verb("run", "lngd_t1_cifar")[1]
    code, text = verb("run", "xyz")
    assert code == 2 and "here are resnets, suites/resn; `curvbench list --suites`" in text


def test_suites_are_listed_with_a_line_each(verb: Verb) -> None:
    code, text = verb("list", "--suites")
    listed = [line.partition(" ")[0] for line in text.splitlines()]
    assert code == 0 and {"resnet", "peers", "papers/lngd_t1_cifar10"} <= set(listed)
    assert not {"bench/regression", "peers/probes"} & set(listed)
    assert all(registry.suite_file(name).is_file() for name in listed)
    assert all(len(line.split(None, 1)) == 2 for line in text.splitlines()), "each has a title"


def test_a_copied_suite_is_the_same_suite_and_nothing_is_overwritten(verb: Verb) -> None:
    assert verb("copy", "peers")[0] == verb("copy", "suites/papers/fngd_t1_complexity.py", "deep/er")[0] == 0
    assert Path("peers/probes.py").is_file() and Path("deep/er/fngd_t1_complexity.py").is_file()
    file = Path("peers.py")
    file.write_text(file.read_text() + "# mine\n")
    before = file.read_text()
    Path("peers/probes.py").unlink()
    code, text = verb("copy", "peers")
    assert code == 2 and "'peers.py' is there already" in text
    assert file.read_text() == before and not Path("peers/probes.py").exists()
    code, text = verb("copy", "resnett")
    assert code == 2 and "did you mean resnet" in text


def test_a_shipped_suite_has_the_cells_of_a_checkouts_wherever_it_lies(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a wheel: below the package, which is installed. Files of suites count as those of the user."""
    assert planning.plan._suite(shipped.SUITES / "resnet.py") == "suites/resnet.py"
    place = empty / "site-packages" / "curvbench" / "shipped"
    (place / "suites").mkdir(parents=True)
    monkeypatch.setattr(libraries, "PACKAGE", place.parent)
    monkeypatch.setattr(shipped, "ROOT", place)
    monkeypatch.setattr(shipped, "SUITES", place / "suites")
    file = put(str(place / "suites" / "own.py"))
    assert libraries.is_users(file) and not libraries.is_users(place.parent / "numerics.py")
    assert planning.plan._here(file) == planning.plan._suite(file) == "suites/own.py"
    assert "shipped" in identity.code.NOT_DECISIVE


def plugin(*words: str) -> subprocess.CompletedProcess[str]:
    """A verb in a process that sees the package in ``tests/plugin`` as installed."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "plugin")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "curvbench", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_another_package_brings_a_probe_a_problem_and_a_suite(empty: Path) -> None:
    """And what is broken in it is named, one line each, while the rest works."""
    done = plugin("run", "acme", "-p", "acme_scaled[scale=3]", "-p", "kfac", "--engine", "inline")
    assert done.returncode == 0, done.stderr
    assert len(list(empty.glob("results/acme/*/cells/*.parquet"))) == 2
    lines = [line.partition(" of acme-curvature is set aside: ") for line in done.stderr.splitlines()]
    broken = "curvbench: warning: {} = acme_curvature.{}".format
    assert {what: why for what, _, why in lines} == {
        broken("suites acme_gone", "suites.gone"): "ValueError: expected the name of a module that binds SUITE",
        broken("probes kfac", "probe:Scaled"): "ValueError: the name is taken",
        broken("probes acme_broken", "broken:Broken"): "SystemExit: acme needs a licence",
        broken("probes acme_odd", "probe:dataclass"): "TypeError: it is no subclass of curvbench.Probe",
    }
    listed = plugin("list").stdout + plugin("list", "--suites").stdout
    assert re.search(r"acme_scaled +A multiple of the identity", listed)
    assert re.search(r"acme_line +One linear layer", listed)
    assert re.search(r"^acme +Acme's probe on Acme's problem\.$", listed, re.M)
