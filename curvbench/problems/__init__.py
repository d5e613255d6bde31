"""Problems: one file, one model with its data and loss. They never import each other."""

from __future__ import annotations

from curvbench.spec import Problem


def validate(problem: Problem) -> None:
    """Raise ValueError, in one line, where the fields that every problem has make no sense."""
    if problem.samples < 1:
        raise ValueError(f"{problem.name}: samples must be at least 1, got {problem.samples}")
    if problem.epochs < 0:
        raise ValueError(f"{problem.name}: epochs must not be negative, got {problem.epochs}")
