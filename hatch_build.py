"""How the package is built: what a wheel holds beside ``curvbench``, and a readme that stands by itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

# Where the repository is published, the one place that says so. Empty until it is: then links of the readme become
# plain words, and its pictures are left out.
URL = ""
FOLDERS = ("suites", "dashboard", "data", ".github/workflows")  # in a wheel below curvbench/shipped, see there


class Folders(BuildHookInterface[Any]):
    """Puts the top-level folders into a wheel; an editable install reads them where they are."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the folders unless the install is editable."""
        if version != "editable":
            build_data["force_include"] |= {folder: f"curvbench/shipped/{folder}" for folder in FOLDERS}


class Readme(MetadataHookInterface):
    """Gives the metadata a readme without relative links, and the URL if there is one."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the readme and the URLs."""
        text = standing_alone((Path(self.root) / "README.md").read_text(encoding="utf-8"), URL)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = {"Repository": URL, "Changelog": f"{URL}/blob/main/CHANGELOG.md"} if URL else {}


def standing_alone(text: str, url: str) -> str:
    """The readme for a place that does not have the files beside it; ``url``: of the repository, or empty."""

    def rewritten(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        if not url:
            return "" if picture else words
        return f"{picture}[{words}]({url}/{'raw' if picture else 'blob'}/main/{target})"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", rewritten, text)
