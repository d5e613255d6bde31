"""Pages of reference: the API from docstrings, the command line from click, the metrics from their table."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import curvbench
from curvbench.spec import METRICS
from docsite.markdown import code, prose, table


class Group(NamedTuple):
    """Names that stand on one page, what they are for, and the module that has them."""

    text: str
    names: Sequence[str]
    module: str = "curvbench"


GROUPS: Mapping[str, Group] = {
    "Measure": Group(
        "One call measures methods on a model; the others are its pieces.",
        (
            *("measure", "Comparison", "exact_fisher", "probe", "every_probe", "from_optimizer", "fit", "errors"),
            "direction_errors",
        ),
    ),
    "Model and batch": Group("What all measurements begin with.", ("Instance",)),
    "Predict costs": Group(
        "What methods cost on a network of which only the shapes of the layers are known.",
        ("cost", "Cost", "Costs", "shapes", "Shape", "Shapes"),
    ),
    "Train": Group("The method that was measured, as an optimizer of torch.", ("NaturalGradient",)),
    "Read results": Group("The rows that runs have written, and what they say.", ("load", "advise")),
    "Figures": Group(
        "Figures of plotly, which `pip install 'curvbench[dashboard]'` brings: `curvbench.plot` draws them from rows.",
        curvbench.plot.__all__,
        "curvbench.plot",
    ),
    "Write a method or a suite": Group(
        "The contracts of a file of one's own; [Adding a probe, a problem or a suite](../extending.md) shows how.",
        (
            *("Probe", "FisherProbe", "Problem", "problem", "Suite", "Preset", "Training", "Search", "Decay"),
            "Drift",
        ),
    ),
}
LETTERS = """\
Shapes are in letters: N samples of a batch, C outputs of a loss term, T loss terms per sample, R score columns per
sample, S positions, G groups, D inputs of a layer (the bias's constant included), M outputs of a layer, P parameters
compared, K vectors that are kept, L layers.
"""
CLI = """\
# Command line

`curvbench VERB --help` prints the same.

```{eval-rst}
.. click:: curvbench.cli.app:cli
   :prog: curvbench
   :nested: full
```
"""


def pages() -> dict[str, str]:
    """The pages by their file's name.

    Raises:
        ValueError: a public name has no docstring, or stands on no page.
    """
    documented = [name for group in GROUPS.values() for name in group.names]
    if missing := sorted({*curvbench.__all__, *curvbench.plot.__all__} - {*documented, "plot"}):
        raise ValueError(f"public names that no group of scripts/docsite/reference.py has: {', '.join(missing)}")
    if mute := [name for group in GROUPS.values() for name in group.names for name in _mute(_home(group), name)]:
        raise ValueError(f"public names without a docstring: {', '.join(mute)}")
    api = {f"api-{title.lower().replace(' ', '-')}.md": _page(title, group) for title, group in GROUPS.items()}
    return {"command-line.md": CLI, "metrics.md": _metrics(), **api}


def _home(group: Group) -> Any:
    return curvbench.plot if group.module == "curvbench.plot" else curvbench


def _mute(home: Any, name: str) -> Iterator[str]:
    """The name, or public members of the class of this name, that have no docstring."""
    thing = getattr(home, name)
    if not inspect.getdoc(thing):
        yield name
    members = vars(thing) if inspect.isclass(thing) else {}
    kinds = (types.FunctionType, property, classmethod, staticmethod)
    for member, value in members.items():
        if not member.startswith("_") and isinstance(value, kinds) and not inspect.getdoc(getattr(thing, member)):
            yield f"{name}.{member}"


def _page(title: str, group: Group) -> str:
    lines = [f".. currentmodule:: {group.module}", ""]
    for name in group.names:
        is_class = inspect.isclass(getattr(_home(group), name))
        lines += [f".. auto{'class' if is_class else 'function'}:: {group.module}.{name}"]
        lines += ["   :members:"] * is_class + [""]
    directives = "\n".join(lines)
    return f"# {title}\n\n{group.text}\n\n{LETTERS}\n```{{eval-rst}}\n{directives}```\n"


def _metrics() -> str:
    rows = [
        [code(name), prose(metric.label), code(metric.unit), metric.better, prose(metric.text)]
        for name, metric in METRICS.items()
    ]
    head = "# Metrics\n\nThe column `metric` of a row, its unit, and which way is better.\n"
    return f"{head}\n{table(['metric', 'name', 'unit', 'better', 'meaning'], rows)}"
