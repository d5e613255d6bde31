"""The identity of a number: the code that decides it, the libraries that were loaded, the machine, the cell."""

from curvbench.identity.cell import cell_id, held_elsewhere, run_identity
from curvbench.identity.code import code_identity, component, content, short_hash
from curvbench.identity.place import commit_of, device_name, environment, machine, version

__all__ = [
    "cell_id",
    "code_identity",
    "commit_of",
    "component",
    "content",
    "device_name",
    "environment",
    "held_elsewhere",
    "machine",
    "run_identity",
    "short_hash",
    "version",
]
