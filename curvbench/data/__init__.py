"""Data sets that problems read."""

from curvbench.data.images import DIGITS_TRAIN, INFO, MNIST, Bytes, Info, damaged, find, info, load, missing

__all__ = [
    "DIGITS_TRAIN",
    "INFO",
    "MNIST",
    "Bytes",
    "Info",
    "damaged",
    "find",
    "info",
    "load",
    "missing",
]
