"""States of probes: averaged, stored, and joined over ranks."""

from curvbench.states.trees import blend, cast, kept, mapped, pack, tensors, unpack, weighted

__all__ = [
    "blend",
    "cast",
    "kept",
    "mapped",
    "pack",
    "tensors",
    "unpack",
    "weighted",
]
