"""What a number depends on, as short hashes: the code, the machine, the cell."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curvbench.registry import source
from curvbench.spec import Cell, Component

PACKAGE = Path(__file__).resolve().parent
# What decides no number. Probes and problems stand here because only the cell's own count: one more changes nothing.
NOT_DECISIVE = re.compile(
    r"(__init__|baselines|cli|display|doctor|download|exits|hyperparameters|identity|locate|registry|runner|selection)\.py"
    r"|(tables|tuning)\.py"
    r"|(analysis|engines|plot|report|store|templates|verbs)/.*|(probes|problems)/[^_].*|parts/errata\.py"
)


@functools.cache
def code_identity(package: Path = PACKAGE) -> str:
    """Hash over the package's source files that decide a number: names and contents."""
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


def environment(device: str = "cpu") -> dict[str, Any]:
    """Where a run is made: commit of the package's checkout (None outside git), versions, machine, load."""
    import torch  # slow to import, and `curvbench list` does not need it here

    sha, dirty = _git()
    return {
        "git_sha": sha,
        "git_dirty": dirty,
        "code": code_identity(),
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "load_average": list(os.getloadavg()),
        "device": device,
        "device_name": device_name(device),
    }


def device_name(device: str) -> str:
    """The model of the processor that ``device`` names; raises ValueError for CUDA that is not there."""
    return _cpu_model() if device == "cpu" else _cuda_model(device)


def short_hash(content: Any) -> str:
    """Twelve hexadecimal digits that what can be written as JSON decides; other objects count by their repr."""
    text = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def component(part: Component) -> dict[str, Any]:
    """What of a probe or a problem decides a number: name, hyperparameters and the content of its file."""
    return {
        "name": part.name,
        "hyperparameters": part.hyperparameters,
        "source": content(source(type(part))),
    }


def content(path: Path) -> str:
    """Hash over a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


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


def _git() -> tuple[str | None, bool | None]:
    """Commit of the checkout that holds this package. A package installed inside another checkout is not of it."""
    if _run_git("ls-files", "--error-unmatch", "spec.py") is None:
        return None, None
    sha, changes = _run_git("rev-parse", "HEAD"), _run_git("status", "--porcelain", ".")
    return sha, bool(changes) if changes is not None else None


def _run_git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
