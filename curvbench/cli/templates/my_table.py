"""Data in a CSV or an npz: `curvbench measure my_table.py:my_table`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

FILE = Path(__file__).with_name("my_table.csv")  # or an npz with the arrays x and y


def my_table() -> dict[str, Any]:
    """A network and the first rows of the table, whose last column is the class; called once, with torch seeded."""
    if FILE.suffix == ".npz":
        arrays = np.load(FILE)
        x, y = arrays["x"], arrays["y"]
    else:
        table = np.loadtxt(FILE, delimiter=",", skiprows=1)
        x, y = table[:, :-1], table[:, -1].astype("int64")
    x = (x - x.mean(0)) / x.std(0)
    model = nn.Sequential(nn.Linear(x.shape[1], 16), nn.Tanh(), nn.Linear(16, int(y.max()) + 1))
    return {"model": model, "inputs": torch.tensor(x[:64], dtype=torch.float32), "targets": torch.tensor(y[:64])}
