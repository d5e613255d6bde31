"""Labels of what a step of an optimizer does, for torch's profiler."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch._C._autograd import _profiler_enabled

PREFIX = "curvbench."  # of the labels


def labelled(phase: str) -> AbstractContextManager[object]:
    """A block that a profiler shows as ``curvbench.`` and the phase; without a profiler it costs nothing."""
    if _profiler_enabled():
        return torch.profiler.record_function(PREFIX + phase)
    return nullcontext()
