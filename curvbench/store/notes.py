"""What a person notes of a run: label, note, tags and whether it is archived, in a file beside the run's results.

The run itself stays as it is: its folder, its id, its identity and every link to it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curvbench import shipped
from curvbench.store import files, record
from curvbench.words import one_line

FILE = "notes.json"
LONGEST = {"label": 60, "note": 1000, "a tag": 30}  # letters
MOST_TAGS = 10


@dataclass(frozen=True)
class Notes:
    """The notes on a run.

    Raises:
        ValueError: a text is too long, takes more than a line, or has signs that cannot be shown.
    """

    label: str = ""
    note: str = ""
    tags: tuple[str, ...] = ()
    archived: bool = False

    def __post_init__(self) -> None:
        for what, text in (("label", self.label), ("note", self.note), *(("a tag", tag) for tag in self.tags)):
            if not text.isprintable() or text != one_line(text) or len(text) > LONGEST[what]:
                raise ValueError(f"expected {what} of one line, {LONGEST[what]} letters at most, got {text[:80]!r}")
        if not all(self.tags) or len(set(self.tags)) < len(self.tags) or len(self.tags) > MOST_TAGS:
            got = ", ".join(self.tags) or "an empty one"
            raise ValueError(f"expected {MOST_TAGS} different tags at most, got {got}")


def tags(text: str) -> tuple[str, ...]:
    """The tags in ``a, b``."""
    return tuple(filter(None, map(str.strip, text.split(","))))


def read_notes(run: Path) -> Notes:
    """The notes on a run, which are empty at first; a damaged file is named in a warning and set aside."""
    path = run / FILE
    if not os.path.lexists(path):
        return Notes()
    try:
        known = record.notes(files.read(path, inside=run))
        return Notes(**known | {"tags": tuple(known.get("tags", ()))})
    except ValueError as error:
        files.set_aside(path, f"damaged: {one_line(error)}")
        return Notes()


def change_notes(run: Path, **changes: Any) -> Notes:
    """Change some fields of the notes on a run, and return all of them.

    Raises:
        ValueError: the run is of the shipped sample, or a text cannot be a note.
        Unwritable: the folder cannot be written.
    """
    if is_shipped(run):
        raise ValueError(f"{run.name} is shipped with curvbench and stays as it is: copy its folder, and note it there")
    notes = dataclasses.replace(read_notes(run), **changes)
    files.replace(run / FILE, (json.dumps(dataclasses.asdict(notes), indent=1) + "\n").encode())
    return notes


def is_shipped(run: Path) -> bool:
    """Whether a run is shipped with curvbench, and stays as it is."""
    return Path(os.path.realpath(run)).is_relative_to(os.path.realpath(shipped.DATA))
