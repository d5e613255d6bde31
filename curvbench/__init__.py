"""curvbench: curvature approximations of neural networks, measured against the exact Fisher matrix.

>>> import torch, curvbench as cb
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
>>> instance = cb.Instance(model, torch.randn(16, 4).double(), torch.arange(16) % 3)
>>> fisher = cb.exact_fisher(instance)
>>> operator = cb.fit(cb.probe("full"), instance)
>>> cb.errors(operator, fisher)["relative"] < 1e-6
True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from curvbench import plot
    from curvbench.analysis.advice import advise
    from curvbench.cells.measure import fit
    from curvbench.comparison import Comparison, measure
    from curvbench.fisher import exact_fisher
    from curvbench.instance import Instance
    from curvbench.meters.direction import direction_errors
    from curvbench.meters.error import errors
    from curvbench.optim import NaturalGradient
    from curvbench.parts.torch_optim import from_optimizer
    from curvbench.prediction import Cost, Costs, Shape, Shapes, cost, shapes
    from curvbench.registry import every_probe, probe, problem
    from curvbench.spec import Decay, Drift, FisherProbe, Preset, Probe, Problem, Search, Suite, Training
    from curvbench.store import load

# Resolved on first use, so that `curvbench --help` does not wait for torch.
_HOMES = {
    "Instance": "instance",
    "exact_fisher": "fisher",
    "probe": "registry",
    "problem": "registry",
    "every_probe": "registry",
    "fit": "cells.measure",
    "measure": "comparison",
    "Comparison": "comparison",
    "errors": "meters.error",
    "direction_errors": "meters.direction",
    "load": "store",
    "advise": "analysis.advice",
    "NaturalGradient": "optim",
    "from_optimizer": "parts.torch_optim",
    "Cost": "prediction",
    "Costs": "prediction",
    "Shape": "prediction",
    "Shapes": "prediction",
    "cost": "prediction",
    "shapes": "prediction",
    "Decay": "spec",
    "Drift": "spec",
    "Search": "spec",
    "Suite": "spec",
    "Preset": "spec",
    "Probe": "spec",
    "FisherProbe": "spec",
    "Problem": "spec",
    "Training": "spec",
}
__all__ = [
    "Comparison",
    "Cost",
    "Costs",
    "Decay",
    "Drift",
    "FisherProbe",
    "Instance",
    "NaturalGradient",
    "Preset",
    "Probe",
    "Problem",
    "Search",
    "Shape",
    "Shapes",
    "Suite",
    "Training",
    "advise",
    "cost",
    "direction_errors",
    "errors",
    "every_probe",
    "exact_fisher",
    "fit",
    "from_optimizer",
    "load",
    "measure",
    "plot",
    "probe",
    "problem",
    "shapes",
]


def __getattr__(name: str) -> Any:
    if name == "plot":
        return import_module("curvbench.plot")
    if name not in _HOMES:
        raise AttributeError(f"module 'curvbench' has no attribute {name!r}")
    return getattr(import_module(f"curvbench.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES, "plot"]
