"""Checks of this machine: what curvbench finds, and whether it is enough."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from curvbench import identity, registry, store
from curvbench.engines import usage
from curvbench.words import one_line

EXTRAS = {
    "dashboard": ("streamlit", "plotly"),
    "images": ("plotly", "kaleido"),
    "hf": ("transformers",),
    "photos": ("PIL",),
    "slurm": ("submitit",),
    "dask": ("distributed",),
    "ray": ("ray",),
    "tune": ("optuna",),
    "peers": ("curvlinops", "nngeometry"),
    "test": ("pytest", "hypothesis", "playwright"),
}
LEAST_MEMORY, LEAST_DISK = 1e9, 1e8  # bytes: with less the shipped suites fail


class Finding(NamedTuple):
    """One line: the name of a check, its result, and whether the result is enough."""

    name: str
    text: str
    is_good: bool = True


def findings(results: Path) -> list[Finding]:
    """All findings in the order in which they are shown; a check that fails is a finding too."""
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("curvbench", _package),
        ("python", lambda: Finding("python", f"{platform.python_version()} on {platform.platform()}")),
        ("torch", _torch),
        ("cpu", lambda: Finding("cpu", f"{identity.device_name('cpu')}, {os.cpu_count()} processors")),
        ("cuda", _cuda),
        ("parts", _parts),
        ("extras", _extras),
        ("memory", _memory),
        ("results", lambda: _results(results)),
    ]
    return [_checked(name, check) for name, check in checks]


def _checked(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:
        return Finding(name, f"{type(error).__name__}: {one_line(error)}", is_good=False)


def _package() -> Finding:
    return Finding("curvbench", f"{importlib.metadata.version('curvbench')}, code {identity.code_identity()}")


def _torch() -> Finding:
    import torch

    blas = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    square = torch.eye(3, dtype=torch.float64) * 2
    is_right = bool(torch.equal(square @ square, 2 * square))
    text = f"{torch.__version__}, BLAS {blas[1] if blas else 'unknown'}, {torch.get_num_threads()} threads"
    return Finding("torch", text if is_right else f"{text}: a matrix product is wrong", is_right)


def _cuda() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("cuda", "none: --device cpu")
    names = [f"cuda:{k} {torch.cuda.get_device_name(k)}" for k in range(torch.cuda.device_count())]
    free = [f"{torch.cuda.mem_get_info(k)[0] / 1e9:.1f} GB free" for k in range(len(names))]
    return Finding("cuda", ", ".join(f"{name} ({space})" for name, space in zip(names, free, strict=True)))


def _parts() -> Finding:
    return Finding("parts", f"{len(registry.probes())} probes, {len(registry.problems())} problems")


def _extras() -> Finding:
    missing = {extra: [m for m in modules if importlib.util.find_spec(m) is None] for extra, modules in EXTRAS.items()}
    parts = [f"{extra} (no {', '.join(absent)})" if absent else extra for extra, absent in missing.items()]
    return Finding("extras", ", ".join(parts))


def _memory() -> Finding:
    free = usage.available()
    return Finding("memory", f"{free / 1e9:.1f} GB available", free >= LEAST_MEMORY)


def _results(results: Path) -> Finding:
    """The free space for results; the nearest parent stands for a folder that does not exist yet."""
    place = store.refuse_unwritable(results)
    free = shutil.disk_usage(place).free
    return Finding("results", f"{free / 1e9:.1f} GB free at {str(results)!r}, which can be written", free >= LEAST_DISK)
