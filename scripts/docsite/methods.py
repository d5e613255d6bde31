"""Pages of methods, from what ``registry.describe`` says of each probe: one for all, and on the site one for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from docsite.markdown import code, formula, prose, table

COSTS = ("statistics", "invert", "precondition", "memory")
HEAD = """\
# Methods

What every probe of curvbench represents, from its own file: `curvbench list --json` has the same facts. This page is
printed by `python scripts/make_docs.py methods > docs/methods.md`.
"""
SITE_HEAD = """\
# Methods

Every method has a page: what it represents, what was measured, what it costs, its hyperparameters, and the errata of
its paper. `curvbench list --json` has the same facts.
"""
LETTERS = """\
**Letters.** N samples of a batch, R score columns per sample of the probe's Fisher (type-2 cross entropy over C
classes: C - 1; empirical: one per loss term), L layers, P parameters compared. Of a layer: S positions, G groups, D
inputs per group (the bias's constant included), M outputs per group, k = k_h k_w entries of a kernel (0 for a Linear).
K: vectors or scores that are kept. a is the input of a layer at one position, g the gradient of a loss term at its
output, W = sum g a^T over positions the score as a matrix, u or d as a vector; F the exact Fisher, F^ the matrix of the
probe, (x) the Kronecker product. Vectors of a layer are the rows of [W | b], so that the output factor comes first.

**Formulas.** $\\mathrm{E}[X]$ is the sum of X over the score columns of the batch, divided by N, and
$\\langle X \\rangle$ is the mean of X over updates, or over noise. $w = \\mathrm{vec}\\,W$, and $w_o$ is row o of W.
$\\bar g$ is the mean gradient of a batch, $V$ (M, D) its part of a layer as a matrix, and $\\bar g(\\hat y)$ has labels
drawn from the model. Sums run over samples n, positions s and score columns r. A circle multiplies entry by entry. t
counts updates, p is the step, H the Hessian, and $\\lambda$ the damping. The formulas are those of the defaults.

**Fisher.** `type-2`: the expectation over the model's own labels, exact, which is also the reference. `mc`: with labels
drawn from the model. `empirical`: with the labels of the data. `forward-only`: the output factor is the identity.
`lg`: noise of variance 1 at the next layer's input instead of a gradient; `lg_mc`: the same, drawn. `bg`: the batch
gradient with drawn labels, times sqrt(N); `bg_data`: with those of the data.

**Cost.** The published multiply-adds of a phase, and for `memory` the numbers kept between steps, corrected where the
paper is wrong. These formulas are what the meter evaluates. Names in a formula are hyperparameters. [condition] is 1
or 0; in it a name may be a hyperparameter's value. A term with a letter of a layer (S, G, D, M, k) is summed over the
layers. Passes through the network are not included.

**Errata** are told in the symbols of their papers. A: changes an implementation, B: changes an analysis or a claim,
C: typographical.
"""


def methods(probes: Sequence[Mapping[str, Any]]) -> str:
    """The page that holds every method."""
    return "\n".join([HEAD, LETTERS, _index(probes), *map(_section, probes)])


def index(probes: Sequence[Mapping[str, Any]]) -> str:
    """The page of the site that names every method, whose pages stand beside it."""
    families = dict.fromkeys(probe["family"] for probe in probes)
    return "\n".join([SITE_HEAD, *(_family(name, probes) for name in sorted(families)), "## Letters\n", LETTERS])


def _family(family: str, probes: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [f"[{probe['name']}]({probe['name']}.md)", prose(probe["description"]), probe["role"]]
        for probe in probes
        if probe["family"] == family
    ]
    return f"## {family[0].upper()}{family[1:]}\n\n{table(['method', 'what it is', 'role'], rows)}"


def method(probe: Mapping[str, Any], measured: str, picture: str) -> str:
    """The page of one method; ``measured``: its table of numbers, ``picture``: its matrix with a caption."""
    named = {
        "Measured": measured,
        "Its matrix beside the exact one": picture,
        "Cost": _costs(probe),
        "Hyperparameters": _hyperparameters(probe),
        "Notes": "".join(f"- {prose(note)}\n" for note in probe["notes"]),
        "Errata": "".join(f"- {_erratum(erratum)}\n" for erratum in probe["errata"]),
    }
    sections = [f"## {title}\n\n{text}" for title, text in named.items() if text]
    facts = {key: fact for key, fact in _facts(probe).items() if fact}
    lines = "".join(f"- {key}: {fact}\n" for key, fact in facts.items())
    head = f"# {probe['name']}\n\n{prose(probe['description'])}\n"
    return "\n".join([head, *map(formula, probe["formulas"]), lines, *sections])


def _index(probes: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for probe in probes:
        default = probe["fisher"]["default"]
        costs = [code(probe["cost"].get(key, "")) for key in COSTS]
        link = f"[{probe['name']}](#{probe['name']})"
        rows.append([link, prose(probe["represents"]), code(default or ""), *costs])
    return table(["probe", "represents", "Fisher", *COSTS], rows)


def _facts(probe: Mapping[str, Any]) -> dict[str, str]:
    return {
        "Represents": prose(probe["represents"]),
        "Fisher": _fisher(probe["fisher"]),
        "Damping": prose(probe["damping"]),
        "Source": prose(probe["source"]),
    }


def _section(probe: Mapping[str, Any]) -> str:
    facts = {
        **_facts(probe),
        "Cost": _cost(probe),
        "Notes": "".join(f"\n  - {prose(note)}" for note in probe["notes"]),
        "Errata": "".join(f"\n  - {_erratum(e)}" for e in probe["errata"]),
    }
    lines = [f"## {probe['name']}", "", prose(probe["description"]), "", formula(", \\quad\n".join(probe["formulas"]))]
    lines += [f"- {name}: {fact}".replace(": \n", ":\n") for name, fact in facts.items() if fact]
    return "\n".join([*lines, "", _hyperparameters(probe)])


def _cost(probe: Mapping[str, Any]) -> str:
    """The formulas of the phases, and what their abbreviations stand for."""
    formulas = [f"{key} {code(cost)}" for key, cost in probe["cost"].items()]
    letters = [code(f"{letter} = {meaning}") for letter, meaning in probe["where"].items()]
    return "; ".join(formulas) + (f", with {', '.join(letters)}" if letters else "") or "none published"


def _costs(probe: Mapping[str, Any]) -> str:
    """The same formulas as a table."""
    if not probe["cost"]:
        return "No paper prices this method.\n"
    rows = [[phase, code(probe["cost"][phase])] for phase in COSTS]
    rows += [[code(letter), code(meaning)] for letter, meaning in probe["where"].items()]
    unit = (
        "Multiply-adds of a phase; for memory, numbers kept between steps. "
        "The [letters](index.md#letters) stand below the list of methods."
    )
    return f"{unit}\n\n{table(['phase', 'formula'], rows)}"


def _fisher(fisher: Mapping[str, Any]) -> str:
    kinds = [code(kind) + (" (default)" if kind == fisher["default"] else "") for kind in fisher["types"]]
    return ", ".join(kinds) if len(kinds) > 1 else code(fisher["default"] or "") or "none"


def _erratum(erratum: Mapping[str, str]) -> str:
    name = " ".join(filter(None, [erratum["id"], f"({erratum['severity']})" if erratum["severity"] else ""]))
    return f"{name}: {prose(erratum['text'])}" if name else prose(erratum["text"])


def _hyperparameters(probe: Mapping[str, Any]) -> str:
    if not probe["hyperparameters"]:
        return ""
    rows = [
        [code(name), code(str(default)), probe["allowed"][name], prose(probe["meanings"][name])]
        for name, default in probe["hyperparameters"].items()
    ]
    return table(["hyperparameter", "default", "takes", "meaning"], rows)
