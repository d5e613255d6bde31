"""The soak, short: faults, signals, limits and full disks leave nothing lost, doubled or wrong, and nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[1] / "scripts" / "soak"


@pytest.mark.long
def test_a_short_soak() -> None:
    command = [sys.executable, str(SOAK), "--cells", "55", "--kills", "2", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    counts, result = done.stdout.strip().splitlines()
    assert counts.startswith("soak: 55 cells, ")
    assert result == "soak: 0 lost, 0 doubled, 0 wrong rows, 0 orphans, 0 files left", done.stderr
    assert done.returncode == 0
