"""A model of one's own: `curvbench measure my_module.py:my_module` holds ten methods against its exact Fisher."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def my_module() -> dict[str, Any]:
    """Model, batch and loss; called once, with torch seeded. Change all of it."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 7 * 7, 10)),
    )
    images, classes = torch.randn(32, 3, 16, 16), torch.randint(10, (32,))
    return {"model": model, "inputs": images, "targets": classes, "loss": nn.CrossEntropyLoss(label_smoothing=0.1)}
