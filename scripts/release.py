"""Whether the files agree on a version that can be released: ``python scripts/release.py [--tag v0.1.0]``.

Prints the version's section of the changelog, or says in one line each what has to be done first, with exit code 1.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SECTION = re.compile(r"^## (\S+)(?: - (\S+))?\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
VERSION = re.compile(r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?")
DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


class Section(NamedTuple):
    """A section of the changelog: ``Unreleased`` or a version, its date, and its text."""

    name: str
    date: str
    text: str


def sections(changelog: str) -> list[Section]:
    """The sections of a changelog, newest first."""
    return [Section(name, date, text.strip()) for name, date, text in SECTION.findall(changelog)]


def disagreements(root: Path) -> list[str]:
    """What does not agree between pyproject.toml, the changelog and the citation, whether or not a release is near."""
    version, cited, known = _version(root), _cited(root, "version"), _versions(root)
    faults = [] if VERSION.fullmatch(version) else [f"pyproject.toml has version {version}, which is no X.Y.Z"]
    faults += [] if cited == version else [f"CITATION.cff has version {cited}, pyproject.toml has {version}"]
    newest = known[0] if known else Section("none", "", "")
    faults += [] if newest.name == version else [f"CHANGELOG.md has {newest.name} as its newest version, not {version}"]
    names = [section.name for section in known]
    faults += [f"CHANGELOG.md has {name} twice" for name in sorted(set(names)) if names.count(name) > 1]
    released = _cited(root, "date-released")
    faults += [] if released == newest.date else [f"CITATION.cff has date {released!r}, CHANGELOG.md {newest.date!r}"]
    return faults


def missing(root: Path, tag: str | None) -> list[str]:
    """What has to be done before a release; ``tag``: the tag of the release. None means that there is none yet."""
    version, faults = _version(root), disagreements(root)
    newest = next((section for section in _versions(root) if section.name == version), Section(version, "", ""))
    waiting = next((s.text for s in sections((root / "CHANGELOG.md").read_text()) if s.name == "Unreleased"), "")
    faults += [f"the tag is {tag}, pyproject.toml has {version}"] if tag not in (None, f"v{version}") else []
    faults += [] if DATE.fullmatch(newest.date) else [f"CHANGELOG.md: '## {version}' has no date: '## X.Y.Z - DATE'"]
    faults += [] if newest.text else [f"CHANGELOG.md says nothing of {version}"]
    faults += ["CHANGELOG.md: lines under 'Unreleased' belong to a version now, or the version is old"] * bool(waiting)
    return faults


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Print the changelog of the version, or what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tag", help="The tag of the release.")
    faults = missing(root, parser.parse_args(arguments).tag)
    if faults:
        print(*(f"release: {fault}" for fault in faults), sep="\n", file=sys.stderr)
        return 1
    print(next(section.text for section in _versions(root)))
    return 0


def _versions(root: Path) -> list[Section]:
    return [section for section in sections((root / "CHANGELOG.md").read_text()) if section.name != "Unreleased"]


def _version(root: Path) -> str:
    return str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])


def _cited(root: Path, key: str) -> str:
    match = re.search(rf"^{key}: *['\"]?([^'\"\s]+)", (root / "CITATION.cff").read_text(), re.MULTILINE)
    return match[1] if match else ""


if __name__ == "__main__":
    sys.exit(main())
