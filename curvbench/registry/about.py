"""The description of a component, as `curvbench list --json` and the docs show it."""

from __future__ import annotations

import dataclasses
import inspect
import operator
import re
import typing
from typing import Any, Literal

from curvbench.registry.errata import ERRATA
from curvbench.spec import Component, Probe
from curvbench.spec.fields import describe as allowed
from curvbench.spec.fields import types_of


def describe(name: str, component: type[Component]) -> dict[str, Any]:
    """The entries of a component in ``curvbench list --json``; a probe has those of its method too.

    Every component has a name, the first line of its docstring, and for each hyperparameter the default, the allowed
    values and the meaning. The default None means that None is the default, or that the value must be given.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(component)}  # type: ignore[arg-type]
    description = (inspect.getdoc(component) or "").partition("\n")[0]
    entries = {
        "name": name,
        "description": description,
        "hyperparameters": {key: None if value is dataclasses.MISSING else value for key, value in defaults.items()},
        "allowed": {key: allowed(annotation) for key, annotation in _narrowed(component).items()},
        "meanings": _meanings(component),
    }
    return entries | _method(component, description) if issubclass(component, Probe) else entries


def _narrowed(component: type[Component]) -> dict[str, Any]:
    """The annotations of the fields; ``fisher_type`` has only the types that the probe takes."""
    kinds = getattr(component, "fisher_types", None)
    return types_of(component) | ({"fisher_type": operator.getitem(Literal, kinds)} if kinds else {})


def _method(probe: type[Probe], description: str) -> dict[str, Any]:
    about = probe.about
    return {
        "role": probe.role,
        "family": about.family,
        "formulas": list(about.formulas),
        "represents": about.represents or description,
        "fisher": _fisher(probe),
        "damping": about.damping,
        "cost": dict(about.cost),
        "where": dict(about.where),
        "source": about.source,
        "notes": list(about.notes),
        "errata": [erratum for entry in about.errata for erratum in _errata(entry)],
    }


def _fisher(probe: type[Probe]) -> dict[str, Any]:
    """The default and all types of Fisher that a probe takes; no types if it uses no Fisher."""
    for key in ("fisher_type", "statistic"):
        default = getattr(probe, key)
        if default is None:
            continue
        annotation = types_of(probe).get(key)
        allowed = getattr(probe, "fisher_types", None) or typing.get_args(annotation) or (default,)
        return {"default": default, "types": list(allowed)}
    return {"default": None, "types": []}


def _errata(entry: str) -> list[dict[str, str]]:
    """The erratum of an id, all errata of a paper (``E-F``), or a probe's own text."""
    ids = [entry] if entry in ERRATA else [i for i in ERRATA if re.fullmatch(rf"{re.escape(entry)}\d+", i)]
    if not ids:
        return [{"id": "", "severity": "", "text": entry}]
    return [{"id": i, **ERRATA[i]._asdict()} for i in ids]


def _meanings(component: type[Component]) -> dict[str, str]:
    """The meanings of the fields in docstrings: the text from ``name`` and a colon to the next field or paragraph."""
    names = [f.name for f in dataclasses.fields(component)]  # type: ignore[arg-type]
    meanings: dict[str, str] = {}
    for base in reversed(component.__mro__):
        for paragraph in inspect.cleandoc(base.__doc__ or "").split("\n\n"):
            pieces = re.split(rf"``({'|'.join(names)})``: ", " ".join(paragraph.split())) if names else []
            meanings |= {name: text.strip(" .;") for name, text in zip(pieces[1::2], pieces[2::2], strict=True)}
    return {name: meanings.get(name, "") for name in names}
