"""One of two processes that train together: ``python ranks.py RANK COUNT FOLDER [dies]``.

It stores, per setting, the parameters it ends with, and what it was refused; with ``dies`` the second ends halfway.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

import curvbench as cb
from curvbench.optim import NaturalGradient
from curvbench.spec import Unsupported

CUTS = (5, 12)  # ranks' samples in a batch of 12: the first five, and the rest


class Setting(NamedTuple):
    """What is trained: a probe, the optimizer's options, and a name of ``model``."""

    probe: cb.Probe
    options: dict[str, Any]
    kind: str = "mlp"


SETTINGS = {
    "kfac": Setting(cb.probe("kfac", damping=0.1), {"momentum": 0.9}),
    "kfac, shared pass": Setting(cb.probe("kfac", damping=0.1, fisher_type="empirical"), {"ema": 0.9}),
    "kfac, averages": Setting(
        cb.probe("kfac", damping=0.1, damping_rule="pi"), {"ema": 0.9, "stat_every": 2, "refresh_every": 3}, "cnn"
    ),
    "kfac, clip": Setting(cb.probe("kfac", damping=0.1), {"kl_clip": 1e-3, "weight_decay": 0.1}, "cnn"),
    "tkfac": Setting(cb.probe("tkfac", damping=0.1), {"ema": 0.9}),
    "thor": Setting(cb.probe("thor", damping=0.1, split=3), {}),
    "eva": Setting(cb.probe("eva", damping=0.1), {}),
    "diag": Setting(cb.probe("diag", damping=0.1), {}),
    "mbf": Setting(cb.probe("mbf", damping=0.1), {}, "cnn"),
    "adam": Setting(cb.probe("adam"), {"lr": 1e-2}),
    "sgdm": Setting(cb.probe("sgdm"), {"momentum": 0.9}),
    "muon": Setting(cb.probe("muon"), {"lr": 0.02, "others_lr": 1e-2}, "normed"),
    "identity": Setting(cb.probe("identity"), {"decoupled_weight_decay": False, "weight_decay": 0.1}),
}


def model(kind: str) -> nn.Module:
    torch.manual_seed(3)
    mlp = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    cnn = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(80, 3))
    normed = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))
    return {"mlp": mlp, "cnn": cnn, "normed": normed}[kind].double()


def batches(kind: str, count: int = 4) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(4)
    shape = (1, 4, 5) if kind == "cnn" else (5,)
    return [(torch.randn(12, *shape).double(), torch.randint(3, (12,))) for _ in range(count)]


def trained(setting: Setting, rows: slice = slice(None), rank: int = 0) -> Tensor:
    """The parameters after some steps on these rows of every batch, every other one in the way of a plain loop."""
    net = model(setting.kind)
    if rank:
        torch.nn.init.zeros_(net[0].weight)  # the first rank's is taken over
    optimizer = NaturalGradient(net, setting.probe, **{"lr": 0.1, **setting.options})
    for number, (x, y) in enumerate(batches(setting.kind)):
        optimizer.zero_grad()
        outputs = net(x[rows]) if number % 2 == 0 else optimizer.forward(x[rows], y[rows])
        F.cross_entropy(outputs, y[rows]).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def uneven(rank: int) -> None:
    """One of four terms is ignored on the first rank, none on the second."""
    y = torch.tensor([0, -100, 1, 2])[: 4 if rank == 0 else 1]
    optimizer = NaturalGradient(nn.Linear(2, 3), cb.probe("kfac"))
    F.cross_entropy(optimizer.forward(torch.ones(len(y), 2), y), y).backward()
    optimizer.step()


def refusals(rank: int, rows: slice) -> dict[str, str]:
    """What is said of input that cannot be joined; of a singular layer by the rank that has it, and by the other."""
    singular = Setting(cb.probe("kfac", damping=0.0, damping_rule="factored"), {})
    bad: dict[str, Callable[[], object]] = {
        "uneven": lambda: uneven(rank),
        "singular": lambda: trained(singular, rows),
        "no mean": lambda: NaturalGradient(model("mlp"), cb.probe("ekfac")),
        "no name": lambda: NaturalGradient(model("mlp"), cb.probe("kfac"), loss=nn.MSELoss()),
    }
    said = {}
    for name, run in bad.items():
        try:
            run()
        except (ValueError, Unsupported) as error:
            said[name] = str(error)
    return said


def main(rank: int, count: int, folder: Path, dies: str = "") -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder / 'meeting'}", timedelta(seconds=60), count, rank)
    rows = slice(0 if rank == 0 else CUTS[0], CUTS[rank])
    if dies and rank == 1:
        NaturalGradient(model("mlp"), SETTINGS["kfac"].probe)
        os._exit(9)
    draws = Setting(cb.probe("kfac", fisher_type="mc", damping=0.1, seed=5), {})
    found = {name: trained(setting, rows, rank) for name, setting in {**SETTINGS, "mc": draws}.items()}
    torch.save([found, refusals(rank, rows)], folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
