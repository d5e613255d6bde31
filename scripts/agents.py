"""Write ``llms.txt`` and ``SKILL.md``: their heads from ``scripts/heads``, the commands from docs/questions.md."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = ("llms.txt", "SKILL.md")
PROGRAM = re.compile(r"```(?:sh|python)\n.*?```", re.DOTALL)


def text(name: str) -> str:
    """A file for agents: its head, then every question with its programs and without their outputs."""
    _, *sections = (ROOT / "docs" / "questions.md").read_text().split("\n## ")
    parts = ["\n\n".join([f"## {section.splitlines()[0]}", *PROGRAM.findall(section)]) for section in sections]
    level = "#" if name == "llms.txt" else ""
    head = (ROOT / "scripts" / "heads" / name).read_text()
    return head + "\n\n".join(level + part for part in parts) + "\n"


if __name__ == "__main__":
    for name in FILES:
        (ROOT / name).write_text(text(name))
