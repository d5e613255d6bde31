"""What other installed packages bring: the entry points of the groups that ``docs/extending.md`` names."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from curvbench.registry.files import on_one_line

T = TypeVar("T")


def load(group: str, read: Callable[[EntryPoint], T], taken: Collection[str]) -> dict[str, T]:
    """What ``read`` makes of the entry points of a group, by name.

    One that cannot be read, or whose name is in ``taken``, is set aside with a warning, because the others work.
    """
    found: dict[str, T] = {}
    for entry in entry_points(group=group):
        try:
            if entry.name in taken or entry.name in found:
                raise ValueError("the name is taken")
            found[entry.name] = read(entry)
        except (Exception, SystemExit) as error:  # of another package anything
            package = entry.dist.name if entry.dist else "a package"
            what = f"{group.rpartition('.')[2]} {entry.name} = {entry.value} of {package}"
            warnings.warn(f"{what} is set aside: {on_one_line(error)}", stacklevel=2)
    return found
