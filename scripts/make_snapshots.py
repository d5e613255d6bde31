"""Make ``data/snapshots`` again: python scripts/make_snapshots.py. A minute on one core.

The snapshots of the presets ``default`` and ``quick`` of every suite, for data that need no download; what no suite
names any more is removed. On a machine with another processor the weights are others, and so is every number of a
trained network: a change of these files is a change of results.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch

from curvbench import identity, training
from curvbench.cells import shipped
from curvbench.registry import load_suite
from curvbench.spec import Problem

ROOT = Path(__file__).parents[1]
PRESETS = ("default", "quick")
LIMIT = 4_000_000  # bytes in all


def main() -> None:
    """Train, store, remove what is left over, and check the size."""
    torch.set_num_threads(1)
    origin = {"commit": commit(), "torch": torch.__version__, "processor": identity.device_name("cpu")}
    files = set()
    for problem, seed in sorted(wanted(), key=lambda pair: (pair[0].label, pair[1])):
        model = training.snapshot(problem, seed, None)
        files.add(shipped.save(model, problem, seed, None, origin))
        print(shipped.in_words(problem, seed))
    for stale in set(shipped.FOLDER.iterdir()) - files:
        stale.unlink()
    size = sum(file.stat().st_size for file in files)
    print(f"{shipped.FOLDER}: {len(files)} files, {size / 1000:.0f} kB")
    if size > LIMIT:
        raise SystemExit(f"more than {LIMIT / 1000:.0f} kB: measure fewer of them")


def wanted() -> set[tuple[Problem, int]]:
    """Problems with their seeds; problems that share a snapshot come once."""
    return set({shipped.path(*place): place for place in _named()}.values())


def _named() -> Iterator[tuple[Problem, int]]:
    for file in [*(ROOT / "suites").glob("*.py"), *(ROOT / "suites" / "papers").glob("*.py")]:
        presets = load_suite(file)[1].presets
        for preset in (presets[name] for name in PRESETS if name in presets):
            problems = {*preset.problems, *(problem for problem, _ in preset.pairs)}
            yield from ((problem, seed) for problem in problems if problem.epochs for seed in preset.seeds)


def commit() -> str:
    """The commit of the checkout, with a plus if files of the package differ from it."""
    return git("rev-parse", "HEAD") + "+" * bool(git("status", "--porcelain", "curvbench"))


def git(*arguments: str) -> str:
    """The output of git in the checkout."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
