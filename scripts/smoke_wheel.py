"""Builds the sdist and the wheel, installs the wheel, and uses it in an empty folder; says how long each step takes.

    python scripts/smoke_wheel.py

The new environment has nothing but curvbench. It sees the packages of the interpreter that runs this script, so that
torch is not installed a second time, but no checkout: a path in a .pth file does not run the .pth files beside it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CELLS = ("-p", "identity", "-p", "tkfac", "-m", "mlp[hidden=8,depth=2,samples=32]")
IN_WHEEL = (
    "py.typed",
    "shipped/suites/resnet.py",
    "shipped/suites/bench/regression.py",
    "shipped/suites/papers/fngd_t1_complexity.py",
    "shipped/dashboard/app.py",
    "shipped/data/papers/fngd.toml",
    "shipped/data/baselines/regression",
    "shipped/data/sample/mlp",
    "shipped/.github/workflows/curvbench.yml",
    "cli/templates/my_table.csv",
)
LIMIT_SECONDS = 120  # of any step
Verb = Callable[..., str]


def main() -> None:
    """Build, install and use the wheel; raises SystemExit at the first step that goes wrong."""
    with tempfile.TemporaryDirectory(prefix="curvbench wheel ") as temporary:
        place = Path(temporary)
        with step("sdist, and the wheel from it and from the checkout"):
            wheel = build(place)
        with step("installation"):
            bin_folder = install(wheel, place / "venv")
        folder = place / "empty"
        folder.mkdir()
        use(bin_folder, folder)
        with step("dashboard, until its page answers"):
            visit(bin_folder / "curvbench", folder)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Say how long a step took."""
    begin = time.monotonic()
    yield
    print(f"{time.monotonic() - begin:5.1f} s  {name}", flush=True)


def build(place: Path) -> Path:
    """The wheel of the checkout, once it has been found the same as that of the sdist."""
    maker = [sys.executable, "-m", "build", "--no-isolation"]
    call([*maker, "--outdir", str(place / "sdist"), str(ROOT)], place)
    call([*maker, "--wheel", "--outdir", str(place / "wheel"), str(ROOT)], place)
    (sdist,), (of_sdist,) = (place / "sdist").glob("*.tar.gz"), (place / "sdist").glob("*.whl")
    (wheel,) = (place / "wheel").glob("*.whl")
    expect(contents(wheel) == contents(of_sdist), "the wheel of the sdist differs from that of the checkout")
    tops = {name.partition("/")[0] for name in contents(wheel)}
    expect(sorted(name.rpartition(".")[2] for name in tops) == ["curvbench", "dist-info"], f"the wheel installs {tops}")
    for name in IN_WHEEL:
        found = any(other.startswith(f"curvbench/{name}") for other in contents(wheel))
        expect(found, f"the wheel has no curvbench/{name}")
    with tarfile.open(sdist) as archive:
        expect(any("/tests/test_house.py" in name for name in archive.getnames()), "the sdist has no tests")
    return wheel


def contents(wheel: Path) -> dict[str, int]:
    """The files of a wheel by name, with their checksums."""
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: info.CRC for info in archive.infolist()}


def install(wheel: Path, place: Path) -> Path:
    """Install a wheel into a new environment that sees the packages of this one, and return its folder of programs."""
    call([sys.executable, "-m", "venv", "--without-pip", str(place)], place.parent)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = place / "lib" / version / "site-packages"
    (site / "outside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python")]
    call([*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)], place.parent)
    where = call([str(place / "bin" / "python"), "-c", "import curvbench; print(curvbench.__file__)"], place.parent)
    expect(Path(where.strip()).is_relative_to(site), f"curvbench comes from {where.strip()}")
    expect(not (site / "torch").exists(), "a second torch was installed")
    return place / "bin"


def use(bin_folder: Path, folder: Path) -> None:
    """Go through the verbs in an empty folder."""

    def verb(name: str, *words: str, says: str) -> None:
        with step(f"curvbench {' '.join((name, *words))}"):
            text = call([str(bin_folder / "curvbench"), name, *words], folder)
        expect(says in text, f"{name} does not say {says!r}:\n{text}")

    verb("list", "--suites", says="papers/lngd_t1_cifar10")
    verb("run", "regression", *CELLS, "--jobs", "2", says="results: results/regression/")
    verb("check", "latest", "--against", "data/baselines", *CELLS, says="passed")
    verb("report", "latest", "--output", "page.html", says="")
    expect("tkfac" in (folder / "page.html").read_text(), "the page has no tkfac")
    verb("claims", "results", says="not measured; surrogates: 0 holds")
    verb("copy", "resnet", says="curvbench run resnet.py")
    verb("init", says="my_suite.py")
    verb("validate", "my_suite", says="my_suite can be run")
    verb("init", "--problem", "data", says="my_table.py")
    verb("measure", "my_table.py:my_table", says="results")


def visit(program: Path, folder: Path) -> None:
    """Start the dashboard, and wait until it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(program), "dashboard", "--port", str(port)]
    with subprocess.Popen(command, cwd=folder, env=environment(), stdout=subprocess.DEVNULL) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/_stcore/health", process)
        finally:
            process.terminate()


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until an address answers ok."""
    end = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                expect(answer.read() == b"ok", f"{address} does not say ok")
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"{address} does not answer; the exit code of the dashboard is {process.poll()}")


def call(command: list[str], folder: Path) -> str:
    """The output of a command; raises SystemExit with the output if the command fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    expect(done.returncode == 0, f"exit code {done.returncode} of {' '.join(command)}:\n{done.stdout}")
    return done.stdout


def environment() -> dict[str, str]:
    """The environment without paths to this checkout, and with one thread."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


def expect(holds: bool, otherwise: str) -> None:
    """Raise SystemExit with a reason if something does not hold."""
    if not holds:
        raise SystemExit(f"smoke test of the wheel: {otherwise}")


if __name__ == "__main__":
    main()
