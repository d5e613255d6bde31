"""Where the shipped folders lie: suites, data, the dashboard and the workflow.

A checkout has them at its top. A wheel has them in the folder of this file, in the same order, so that a path from one
of them to another is the same in both.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent
ROOT = _HERE if (_HERE / "suites").is_dir() else _HERE.parents[1]
SUITES = ROOT / "suites"
DATA = ROOT / "data"
DASHBOARD = ROOT / "dashboard"
WORKFLOW = ROOT / ".github" / "workflows" / "curvbench.yml"


def find(path: str | Path) -> Path:
    """``path`` itself if it exists or is not relative, else what is shipped at ``suites/...`` or ``data/...``."""
    path = Path(path)
    is_name = path.parts[:1] in (("suites",), ("data",)) and ".." not in path.parts
    return ROOT / path if is_name and not path.exists() and (ROOT / path).exists() else path
