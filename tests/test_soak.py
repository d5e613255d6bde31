"""The soak, short: faults, killed parents and full disks leave nothing lost, duplicated or wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[1] / "scripts" / "soak"


@pytest.mark.slow
def test_a_short_soak() -> None:
    command = [sys.executable, str(SOAK), "--cells", "55", "--kills", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    pattern = r"soak: 55 cells, \d parents killed, \d full disks: 0 lost, 0 duplicated, 0 wrong rows, 0 orphans"
    assert re.fullmatch(pattern, done.stdout.strip()), done.stdout + done.stderr
    assert done.returncode == 0
