"""The environment of a run: commits, versions, processor, memory."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from curvbench.identity.code import code_identity
from curvbench.identity.libraries import PACKAGE


def environment(device: str = "cpu", suite: Path | None = None) -> dict[str, Any]:
    """The environment of a run: the commits of the suite's and curvbench's checkouts, versions, machine, load.

    The commit None means that the files are not tracked by git.
    """
    import torch  # slow to import, and `curvbench list` does not need it here

    sha, is_dirty = commit_of(suite) if suite else (None, None)
    curvbench_sha, curvbench_is_dirty = commit_of(PACKAGE / "__init__.py")
    return {
        "git_sha": sha,
        "git_dirty": is_dirty,
        "curvbench_version": version(),
        "curvbench_sha": curvbench_sha,
        "curvbench_dirty": curvbench_is_dirty,
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
    """This machine, with all entries that asv needs; memory is in bytes."""
    return {
        "host": platform.node(),
        "arch": platform.machine(),
        "os": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def version() -> str:
    """The installed version of curvbench; empty if curvbench is on the path but not installed."""
    try:
        return importlib.metadata.version("curvbench")
    except importlib.metadata.PackageNotFoundError:
        return ""


def commit_of(file: Path) -> tuple[str | None, bool | None]:
    """The commit of the checkout that tracks a file, and whether a Python file there differs from it."""
    folder = file.resolve().parent
    if _run_git(folder, "ls-files", "--error-unmatch", file.name) is None:
        return None, None
    sha = _run_git(folder, "rev-parse", "HEAD")
    changes = _run_git(folder, "status", "--porcelain", "--untracked-files=no", ":(top)*.py")
    return sha, bool(changes) if changes is not None else None


def device_name(device: str) -> str:
    """The model of the processor that ``device`` names; raises ValueError for a CUDA device that is missing."""
    return _cpu_model() if device == "cpu" else _cuda_model(device)


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


def _run_git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
