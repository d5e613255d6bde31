"""A model, its batches and its loss from a function or object in a file."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from curvbench import registry
from curvbench.cells.given import Given
from curvbench.comparison.batches import batches_of
from curvbench.instance.contents import mapped
from curvbench.registry.files import on_one_line
from curvbench.spec import Problem
from curvbench.training import seeded
from curvbench.words import near_misses

FORMS = "(model, inputs, targets, loss), (model, loader, loss), a dict with these names, or a Problem"
_OPTIONS = ("outputs", "sample_inputs")
_NAMES = ("model", "inputs", "targets", "loader", "loss", "mc_samples", *_OPTIONS)


def problem_of(text: str, seed: int = 0, dtype: str | None = None, mc_samples: int | None = None) -> Problem:
    """The problem that ``FILE.py:NAME`` gives: NAME is called once, with torch seeded, if it can be called.

    Relative paths in the file are relative to its folder. ``dtype``: the dtype to which model and numbers are rounded;
    None means that they stay. ``mc_samples``: the draws per sample, instead of those that the file gives.

    Raises:
        ValueError: there is no such file or name, NAME fails, or it gives something else than ``FORMS``.
    """
    file, name = parts(text)
    names = vars(registry.load_file(file))
    if name not in names:
        known = [key for key, value in names.items() if callable(value) and not key.startswith("_")]
        raise ValueError(f"no {name!r} in {str(file)!r}: {near_misses(name, known)}")
    value = names[name]
    if callable(value) and not isinstance(value, nn.Module):
        try:
            with seeded(seed, torch.device("cpu")), chdir(file.parent):
                value = value()
        except Exception as error:  # a user's code raises anything
            raise ValueError(f"{text} failed: {on_one_line(error)}") from error
    return value if isinstance(value, Problem) else _given(value, name, text, dtype, mc_samples)


def refuse_unsent(problem: Problem, text: str) -> None:
    """Raise ValueError if a problem cannot be sent to the processes that measure it."""
    try:
        pickle.dumps(problem)
    except Exception as error:  # a user's object raises anything
        advice = "define what it names at the level of the module, or take --engine inline"
        raise ValueError(f"{text} cannot be sent to other processes ({on_one_line(error)}): {advice}") from error


def parts(text: str) -> tuple[Path, str]:
    """File and name in ``FILE.py:NAME``; raises ValueError."""
    match = re.fullmatch(r"(.+\.py):(\w+)", text)
    if match is None:
        raise ValueError(f"expected FILE.py:NAME, got {text!r}")
    return Path(match[1]), match[2]


def _given(value: Any, name: str, text: str, dtype: str | None, mc_samples: int | None) -> Given:
    named = _named(value, text)
    model = named["model"]
    if not isinstance(model, nn.Module):
        raise ValueError(f"{text} gives a model of type {type(model).__name__}: give a torch.nn.Module")
    batches = batches_of(model, named.get("loader", named.get("inputs")), named.get("targets"))
    if dtype is not None:
        kind = getattr(torch, dtype)
        model = model.to(kind)
        batches = tuple((mapped(x, lambda t: _to(t, kind)), _to(y, kind)) for x, y in batches)
    options = {key: named.get(key) for key in _OPTIONS}
    loss, draws = named.get("loss", "cross_entropy"), named.get("mc_samples", 0) if mc_samples is None else mc_samples
    return Given.of(model, batches, loss, name, draws, options)


def _to(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _named(value: Any, text: str) -> Mapping[str, Any]:
    """The parts of what NAME gave, by name."""
    if isinstance(value, Mapping):
        if unknown := [key for key in value if key not in _NAMES]:
            raise ValueError(f"{text} gives {unknown[0]!r}: {near_misses(str(unknown[0]), _NAMES)}")
        found = dict(value)
    elif isinstance(value, Sequence) and 2 <= len(value) <= 4 and isinstance(value[0], nn.Module):
        found = dict(zip(_order(value), value, strict=True))
    else:
        raise ValueError(f"{text} gives {type(value).__name__}, where {FORMS} is expected")
    if "model" not in found or not {"inputs", "loader"} & found.keys():
        raise ValueError(f"{text} gives {', '.join(map(repr, found))}, where {FORMS} is expected")
    return found


def _order(value: Sequence[Any]) -> tuple[str, ...]:
    """The names of a tuple's parts: three of them end in targets if these are a tensor, else in a loss."""
    if len(value) == 3:
        is_targets = not isinstance(value[2], str | nn.Module) and not callable(value[2])
        return ("model", "inputs", "targets") if is_targets else ("model", "loader", "loss")
    return ("model", "loader") if len(value) == 2 else ("model", "inputs", "targets", "loss")
