"""Run the commands and programs of a page, and write what they print into the page: ``run_page.py docs/questions.md``.

Blocks ``sh`` and ``python`` run one after the other in a folder that they share. A block ``text`` that follows one
becomes its standard output, of which ``LINES`` lines are kept. A picture ``spectra.svg`` of the page becomes the figure
of the file ``spectra.html`` if the programs have written one, which needs Chromium.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from pictures import drawn

BLOCK = re.compile(r"```(sh|python)\n(.*?)```(?:(\n\n```text\n).*?```)?", re.DOTALL)
PICTURE = re.compile(r"!\[[^]]*\]\(([^)]+\.svg)\)")
LINES = 40  # of an output
SUITES = Path(__file__).resolve().parents[1] / "suites"  # as from a checkout


def rendered(page: str, run: Callable[[str, str], str]) -> str:
    """The page with the output of ``run(language, source)`` in every block of text that follows a program."""

    def replaced(match: re.Match[str]) -> str:
        output = shown(run(match[1], match[2]))
        return f"```{match[1]}\n{match[2]}```" + (f"{match[3]}{output}```" if match[3] else "")

    return BLOCK.sub(replaced, page)


def shown(output: str) -> str:
    """An output as a page shows it."""
    lines = [line.rstrip() for line in output.strip("\n").splitlines()]
    return "\n".join(lines[:LINES] + ["..."] * (len(lines) > LINES)) + "\n"


def runner(folder: Path) -> Callable[[str, str], str]:
    """Runs programs in a folder; raises CalledProcessError where one fails."""
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": paths, "COLUMNS": "118", "OMP_NUM_THREADS": "1"}

    def run(language: str, source: str) -> str:
        command = [sys.executable, "-c", source] if language == "python" else ["sh", "-ec", source]
        done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    return run


def executed(page: Path, folder: Path) -> str:
    """The page with what its programs print in a folder, in which the shipped suites lie as in a checkout."""
    (folder / "suites").symlink_to(SUITES)
    return rendered(page.read_text(), runner(folder))


def figures_of(page: Path, folder: Path) -> dict[str, str]:
    """What the programs of a page have left in the folder as HTML, by the links of its pictures."""
    files = {target: folder / f"{Path(target).stem}.html" for target in PICTURE.findall(page.read_text())}
    return {target: file.read_text() for target, file in files.items() if file.exists()}


def main(pages: list[str]) -> None:
    """Run every page in a folder of its own."""
    for page in map(Path, pages):
        with tempfile.TemporaryDirectory() as folder:
            page.write_text(executed(page, Path(folder)))
            if figures := figures_of(page, Path(folder)):
                for target, picture in drawn(figures).items():
                    (page.parent / target).write_bytes(picture)


if __name__ == "__main__":
    main(sys.argv[1:])
