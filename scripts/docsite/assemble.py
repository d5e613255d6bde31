"""Gathers the sources of the site: the pages of the repository as they stand, and those that are made of the code."""

from __future__ import annotations

import re
import shutil
from pathlib import Path, PurePosixPath
from posixpath import normpath

from curvbench import registry
from docsite import measured, methods, reference
from docsite.pictures import CAPTION, Pictures

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "docs" / "site"  # the first page and the style, which are no pages for readers of the repository
ELSEWHERE = ("CHANGELOG.md", "CONTRIBUTING.md")  # pages that stand beside docs/
FOR_AGENTS = ("llms.txt", "SKILL.md")  # served as they stand
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)


def assemble(source: Path) -> None:
    """Write every source of the site below ``source``, which must not exist; folders are those of the repository."""
    shutil.copytree(ROOT / "docs", source / "docs", ignore=shutil.ignore_patterns("site", "methods.md"))
    for name in ELSEWHERE:
        shutil.copy(ROOT / name, source)
    for page in source.rglob("*.md"):
        page.write_text(linked(page.read_text(), page.relative_to(source), source))
    (source / "_static").mkdir()
    style = (TEMPLATE / "style.css").read_text() + as_drawn(source / "docs" / "images")
    (source / "_static" / "style.css").write_text(style)
    shutil.copy(Path(__file__).with_name("conf.py"), source)
    (source / "served").mkdir()
    for name in FOR_AGENTS:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source / "served")
    _write(source / "docs" / "methods", _methods(source / "docs" / "methods"))
    _write(source / "docs" / "reference", reference.pages())
    for first in (source / "docs").glob("*/index.md"):
        first.write_text(above_others(first))
    home = (TEMPLATE / "index.md").read_text().replace("](../", "](docs/")  # because it moves to the root
    (source / "index.md").write_text(listed(home, source))


def linked(text: str, page: PurePosixPath | Path, source: Path) -> str:
    """A page whose links lead to pages of the site; a file of the repository is copied and can be downloaded."""

    def led(match: re.Match[str]) -> str:
        words, target = match.groups()
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not path:
            return match[0]
        inside = normpath(PurePosixPath(page).parent / path)
        up = "../" * (len(PurePosixPath(page).parts) - 1)
        if inside == "README.md":
            return f"[{words}]({up}index.md)"
        if inside == "docs/methods.md":
            return f"[{words}]({up}docs/methods/{anchor or 'index'}.md)"
        if (ROOT / inside).is_dir():
            return words
        if not (source / inside).exists() and (ROOT / inside).is_file():
            (source / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / inside, source / inside)
        return match[0]

    parts = FENCE.split(text)  # odd ones are code
    return "".join(part if number % 2 else LINK.sub(led, part) for number, part in enumerate(parts))


def as_drawn(images: Path) -> str:
    """The style of maps of colours, which the dark screen leaves as they are: the colours are the content."""
    maps = [picture.name for picture in sorted(images.rglob("*.svg")) if "<image" in picture.read_text()]
    return "".join(f'img[src$="/{name}"] {{ filter: none !important; }}\n' for name in maps)


def listed(text: str, source: Path) -> str:
    """The first page with those entries of its lists of pages that there are, and without lists that are empty."""

    def kept(match: re.Match[str]) -> str:
        options, _, entries = match[1].rpartition("\n\n")
        found = [entry for entry in entries.split() if any(source.glob(f"{entry}.md"))]
        return f"```{{toctree}}\n{options}\n\n" + "\n".join(found) + "\n```\n" if found else ""

    return re.sub(r"```\{toctree\}\n(.*?)\n```\n", kept, text, flags=re.DOTALL)


def above_others(first: Path) -> str:
    """The first page of a folder, with the other ones below it in the menu: in the order of its links, then by name."""
    text = first.read_text()
    names = sorted(page.stem for page in first.parent.glob("*.md") if page != first)
    near = [name for name in dict.fromkeys(re.findall(r"\]\((\w+)\.md\)", text)) if name in names]
    entries = "".join(f"{name}\n" for name in dict.fromkeys([*near, *names]))
    return f"{text}\n```{{toctree}}\n:hidden:\n\n{entries}```\n"


def _methods(folder: Path) -> dict[str, str]:
    """The pages of methods; their pictures are drawn into ``folder``."""
    folder.mkdir()
    rows, pictures = measured.rows(), Pictures()
    probes = [registry.describe(*item) for item in registry.probes().items()]
    pages = {"index.md": methods.index(probes)}
    for probe in probes:
        name = probe["name"]
        error = pictures.draw(name, folder)
        alt = f"The exact Fisher, the matrix of {name}, and their difference"
        picture = f"```{{image}} {name}.png\n:alt: {alt}\n:class: matrices\n```\n\n{CAPTION}{error:.3g}.\n"
        pages[f"{name}.md"] = methods.method(probe, measured.section(rows.get(name, [])), picture)
    return pages


def _write(folder: Path, pages: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in pages.items():
        (folder / name).write_text(text)
