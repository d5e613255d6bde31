"""What a number depends on, as short hashes: the code, the machine, the cell."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curvbench.libraries import PACKAGE, file_hash, is_users
from curvbench.registry import source
from curvbench.spec import Cell, Component

# What decides no number. Probes and problems stand here because only the cell's own count: one more changes nothing.
NOT_DECISIVE = re.compile(
    r"(__init__|baselines|cli|display|doctor|download|exits|hyperparameters|identity|locate|registry|runner|selection)\.py"
    r"|(libraries|syntax|tables|tuning)\.py"
    r"|(analysis|engines|plot|report|store|templates|verbs)/.*|(probes|problems)/[^_].*|parts/errata\.py"
)


@functools.cache
def code_identity(package: Path = PACKAGE) -> str:
    """Hash over the package's files that decide a number: their names, and what their code does."""
    files = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    return short_hash({name: content(path) for name, path in files.items() if not NOT_DECISIVE.fullmatch(name)})


def cell_id(cell: Cell, environment: Mapping[str, Any]) -> str:
    """Hash over everything that decides the rows of ``cell``; ``environment`` as ``environment()`` gives it."""
    return short_hash(
        {
            "suite": cell.suite,
            "problem": component(cell.problem),
            "probe": component(cell.probe),
            "seed": cell.seed,
            "meters": cell.meters,
            "precision": cell.precision,
            **({"training": cell.training.hyperparameters} if cell.training else {}),
            **({"surrogate": True} if cell.surrogate else {}),
            **({"weights": cell.weights} if cell.weights else {}),
            **run_identity(cell, environment),
        }
    )


def run_identity(cell: Cell, environment: Mapping[str, Any]) -> dict[str, Any]:
    """What the cells of one run have in common."""
    return {
        "code": code_identity(),
        "torch": environment["torch_version"],
        "device": environment["device_name"],
        "dtype": cell.dtype,
        "threads": cell.threads,
        "damping": cell.damping,
    }


def environment(device: str = "cpu", suite: Path | None = None) -> dict[str, Any]:
    """Where a run is made: the commits of the suite's checkout and of curvbench's, versions, machine, load.

    A commit is None outside git.
    """
    import torch  # slow to import, and `curvbench list` does not need it here

    (sha, dirty), (own, own_dirty) = commit_of(suite) if suite else (None, None), commit_of(PACKAGE / "spec.py")
    return {
        "git_sha": sha,
        "git_dirty": dirty,
        "curvbench_version": version(),
        "curvbench_sha": own,
        "curvbench_dirty": own_dirty,
        "code": code_identity(),
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
        "platform": platform.platform(),
        **machine(),
        "load_average": list(os.getloadavg()),
        "device": device,
        "device_name": device_name(device),
    }


def machine() -> dict[str, Any]:
    """The machine at hand, in bytes where it is memory, with all that asv asks of one."""
    return {
        "host": platform.node(),
        "arch": platform.machine(),
        "os": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def version() -> str:
    """The version of curvbench that is installed; empty where it is only on the path."""
    try:
        return importlib.metadata.version("curvbench")
    except importlib.metadata.PackageNotFoundError:
        return ""


def commit_of(file: Path) -> tuple[str | None, bool | None]:
    """Commit of the checkout that a file is tracked in, and whether a Python file there differs from it."""
    folder = file.resolve().parent
    if _run_git(folder, "ls-files", "--error-unmatch", file.name) is None:
        return None, None
    sha = _run_git(folder, "rev-parse", "HEAD")
    changes = _run_git(folder, "status", "--porcelain", "--untracked-files=no", ":(top)*.py")
    return sha, bool(changes) if changes is not None else None


def device_name(device: str) -> str:
    """The model of the processor that ``device`` names; raises ValueError for CUDA that is not there."""
    return _cpu_model() if device == "cpu" else _cuda_model(device)


def short_hash(content: Any) -> str:
    """Twelve hexadecimal digits that what can be written as JSON decides; other objects count by their repr."""
    text = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def component(part: Component) -> dict[str, Any]:
    """What of a probe or a problem decides a number: name, hyperparameters and the code of its class and its bases."""
    return {
        "name": part.name,
        "hyperparameters": part.hyperparameters,
        "source": [content(file) for file in _sources(type(part))],
    }


def content(path: Path) -> str:
    """Hash over what the code of a file does: docstrings, comments and layout do not count."""
    return file_hash(path)


@functools.cache
def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _cuda_model(device: str) -> str:
    import torch  # slow to import, and needed for CUDA alone

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise ValueError(f"--device {device}: torch {torch.__version__} sees no CUDA device here; use --device cpu")
    index = int(device.partition(":")[2] or torch.cuda.current_device())
    if index >= count:
        raise ValueError(f"--device {device}: there are {count} CUDA devices, the last is cuda:{count - 1}")
    return torch.cuda.get_device_name(index)


@functools.cache
def _sources(kind: type[Component]) -> tuple[Path, ...]:
    """The files that define a component: its own, and those of its bases that decide numbers."""
    return tuple(dict.fromkeys([source(kind), *filter(_counts, map(_file, kind.__mro__))]))


def _file(kind: type) -> Path:
    return Path(getattr(sys.modules.get(kind.__module__), "__file__", None) or "").resolve()


def _counts(file: Path) -> bool:
    """Whether the file of a base class decides numbers, and ``code_identity`` passes over it."""
    if file.is_relative_to(PACKAGE):
        return bool(NOT_DECISIVE.fullmatch(file.relative_to(PACKAGE).as_posix()))
    return file.is_file() and is_users(file)


def _run_git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
