"""Sums over some of the outputs, added up and never subtracted, so that no digit is lost where one of them is large."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def tails(p: Tensor) -> Tensor:
    """The sums Q (..., C) of p (..., C) from each class on."""
    return p.flip(-1).cumsum(-1).flip(-1)


def others(p: Tensor) -> Tensor:
    """The sum of p (..., C) over all classes but one, for each class, (..., C)."""
    return F.pad(p.cumsum(-1)[..., :-1], (1, 0)) + F.pad(tails(p)[..., 1:], (0, 1))
