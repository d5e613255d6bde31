"""A component: a frozen dataclass whose fields are its hyperparameters."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from curvbench.spec.fields import check, types_of
from curvbench.spec.labels import escaped


class Component:
    """A frozen dataclass whose fields are its hyperparameters: hashable, picklable, describes itself.

    The name is the file's: ``curvbench/probes/kfac.py`` holds ``kfac``. Outside the package it is the class's.

    Every value is checked against its field's annotation, and an integer becomes a float where a float is expected. A
    subclass that has a ``__post_init__`` of its own calls this one first.

    Raises:
        ValueError: an annotation does not allow the value of its field.
    """

    def __post_init__(self) -> None:
        for name, annotation in types_of(type(self)).items():
            object.__setattr__(self, name, check(f"{self.name}: {name}", getattr(self, name), annotation))

    @property
    def name(self) -> str:
        module = type(self).__module__
        shipped = module.startswith(("curvbench.probes.", "curvbench.problems."))
        return module.rpartition(".")[2] if shipped else type(self).__name__

    @property
    def other_sources(self) -> tuple[Path, ...]:
        """The files beside those of its classes whose code decides its numbers."""
        return ()

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Every field with its value, in the order of declaration."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @property
    def changed(self) -> dict[str, Any]:
        """The hyperparameters that differ from their defaults, in the order of declaration."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)  # type: ignore[arg-type]
            if f.init and getattr(self, f.name) != f.default
        }

    @property
    def arguments(self) -> str:
        """The hyperparameters that differ from their defaults, as ``key=value,...`` (what ``-p`` takes)."""
        return ",".join(f"{key}={as_text(value)}" for key, value in self.changed.items())

    @property
    def label(self) -> str:
        """``name`` or ``name[key=value,...]``: what a table shows and ``-p``/``-m`` accept."""
        return f"{self.name}[{self.arguments}]" if self.arguments else self.name


def as_text(value: Any) -> str:
    """A hyperparameter as ``-p`` reads it: the entries of a tuple with slashes between them, a component as its label.

    What separates arguments is escaped in a text.
    """
    if isinstance(value, Component):
        return value.label
    return "/".join(map(as_text, value)) if isinstance(value, tuple) else escaped(str(value))
