"""Whether the probe of a label is a method, or a reference or bound with which no method competes."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from curvbench.registry import OPTIMIZER, parse_probe, probes
from curvbench.spec import Role

COMPARED = ("sgdm", "adam", "muon", "soap", "shampoo", "kfac", "ekfac", "lngd")
"""The methods that a person compares first: ``curvbench.measure`` takes them by default."""
BASELINES = ("sgdm", "identity")  # their step is the plain gradient, with momentum or without


def role(label: str) -> Role:
    """The role of the probe of a label; a probe that is not installed here counts as a method."""
    kind = probes().get(name_of(label))
    return "method" if kind is None else kind.role


def is_method(label: str) -> bool:
    """Whether the probe of a label is a method: references and bounds are no winners."""
    return role(label) == "method"


def are_methods(labels: Iterable[str]) -> np.ndarray:
    """``is_method`` for every label, as a mask."""
    return np.array([is_method(label) for label in labels], dtype=bool)


def are_ranked(labels: Iterable[str], *metrics: str) -> np.ndarray:
    """Whether each label is of a method that metrics compare: errors do not rank solvers of the Fisher itself."""
    if not any(metric.startswith("error.") for metric in metrics):
        return are_methods(labels)
    return np.array([is_method(label) and _is_ranked_by_error(label) for label in labels], dtype=bool)


def _is_ranked_by_error(label: str) -> bool:
    kind = probes().get(name_of(label))
    return kind is None or kind.is_ranked_by_error


def learns_at_every_step(label: str) -> bool:
    """Whether the statistics of a probe are moments of the gradient, which every step takes in."""
    kind = probes().get(name_of(label))
    if label.startswith(OPTIMIZER):
        return True
    return kind is not None and kind.has_own_momentum


def sets_lengths(label: str) -> bool:
    """Whether a probe sets the length of every layer's step; a probe that is not installed here does not."""
    try:
        return name_of(label) in probes() and parse_probe(label).sets_lengths
    except ValueError:  # a hyperparameter of another version
        return False


def name_of(label: str) -> str:
    """The name in a label such as ``kfac[damping_rule=pi]`` or ``kfac {lr=0.1}``."""
    return re.split(r"[\[ ]", label, maxsplit=1)[0]
