"""Sentences on methods that were held against the exact Fisher: each a function of one problem's rows and a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import pandas as pd

from curvbench.analysis.frames import labels, texts
from curvbench.analysis.roles import is_method
from curvbench.analysis.verdict.methods import (
    METRICS_READ,
    NEGLIGIBLE,
    TIE,
    Budget,
    Cost,
    Method,
    are_tied,
    compared,
    gradient_like,
    lacking,
    methods,
    seeds,
    winners,
)
from curvbench.analysis.verdict.words import (
    counted,
    draws,
    few,
    first_upper,
    in_gradients,
    listed,
    percent,
    power,
    ranged,
    times,
)
from curvbench.spec import Status
from curvbench.words import one_line

SCALE = "the gap between a plain gradient step and a step with the {} Fisher of every layer"
MOST_LAYERS, MOST_ERROR = 3, 0.8  # layers are named until they have this share of the squared error
LEAST_DAMPING, MOST_DAMPING = 1e-8, 1e2  # the ends of the grid of dampings
LONGEST = 120  # characters of a reason
LEAST_SHARE = 1e-3  # of the parameters: a smaller one would be shown as 0.0%
READ = frozenset(
    {*METRICS_READ, "error.share", "coverage.parameters", "flops.uncounted_ops"}
)  # the metrics that the sentences read


def best_method(rows: pd.DataFrame, budget: Budget) -> str | None:
    """Which method closes most of the gap within the budget, and which at any cost."""
    rivals = compared(rows)
    if not rivals:
        return _too_little(rows)
    within, best = winners(rivals, budget)
    scale = _scale(rows)
    where = draws(rows, seeds(rivals))
    if any(not math.isnan(method.damping) for method in rivals):
        where += ", each method at its best damping"
    if best is None or best.gap <= 0:
        return f"No method steps better than the plain gradient {where}: {_nearest(rivals[0])} of {scale}."
    if within is None:
        return f"{_none_fits(rivals, budget)}; {_most(best, budget, f' of {scale} {where}')}."
    rest = _at_any_cost(within, best, rivals, budget)
    if within.gap <= 0:
        return (
            f"Within {budget}, no method steps better than the plain gradient {where}: {_nearest(within)} of {scale}; "
            f"{rest}."
        )
    price = _price(within, budget)
    return f"Within {budget}, {within.label} closes most of {scale} {where}: {_closed(within)}, at {price}; {rest}."


def not_told_apart(rows: pd.DataFrame, budget: Budget) -> str | None:
    """Which methods cannot be told apart from the winners, and how many other pairs cannot either."""
    rivals = compared(rows)
    pairs = {frozenset((a.label, b.label)) for a, b in combinations(rivals, 2) if are_tied(a, b)}
    clauses: list[str] = []
    for leader in _leaders(rivals, budget):
        tied = [m for m in _tied(leader, rivals, budget) if not clauses or frozenset((leader.label, m.label)) in pairs]
        pairs -= {frozenset((leader.label, method.label)) for method in tied}
        if tied:
            verb = "" if clauses else "cannot be told apart "
            clauses.append(f"{_with_gap(leader)} {verb}from {few(list(map(_with_gap, tied)))}")
    if not clauses:
        return None
    count = seeds(rivals)
    rule = f"gaps closer than {percent(TIE)} are ties" if count < 2 else "their ranges overlap"
    more = f"; nor can {counted(len(pairs), 'other pair')} of methods" if pairs else ""
    return f"{first_upper(draws(rows, count))}, {', nor '.join(clauses)}: {rule}{more}."


def best_damping(rows: pd.DataFrame, budget: Budget) -> str | None:
    """The damping at which each method serves best, and the width of the plateau."""
    damped = [method for method in compared(rows) if not math.isnan(method.damping)]
    if damped:
        parts = [f"{method.label} at {power(method.damping)}{_plateau(method)}" for method in damped]
        where = _second_batch(rows)
        own = "Each method serves best at a damping of its own, added to the mean Fisher's diagonal"
        return f"{own}{where}: {few(parts)}."
    values = _dampings(rows)
    if not values or not compared(rows):
        return None
    at = f"Steps were compared at damping {listed(values)}, added to the mean Fisher's diagonal"
    return f"{at}; which damping serves each method best was not measured."


def cost_of_a_step(rows: pd.DataFrame, budget: Budget) -> str | None:
    """What a step with the winners costs in gradients, and from which refresh interval on next to nothing."""
    rivals = compared(rows)
    priced = {method.label: method.cost for method in rivals if method.cost is not None}
    shown = [m.label for m in _leaders(rivals, budget) if m.label in priced] or list(priced)[:1]
    if not shown:
        return None
    parts = [_over_time(label, priced[label]) for label in shown]
    never, little = sum(cost.negligible_from() is None for cost in priced.values()), times(1 + NEGLIGIBLE)
    among = [f"of {counted(len(priced), 'method')}, {never} never cost less than {little}"]
    parts += among if len(priced) > len(shown) and never else []
    return f"In FLOPs, {'; '.join(parts)}."


def layers_with_the_error(rows: pd.DataFrame, budget: Budget) -> str | None:
    """Which layers carry the winner's error in the Fisher of the layers."""
    rivals = compared(rows)
    for method in _leaders(rivals, budget):
        shares = _error_shares(rows, method.label)
        if len(shares) > 1:
            return _carriers(method.label, shares)
    return None


def missing(rows: pd.DataFrame, budget: Budget) -> str | None:
    """Which parameters are not covered, which probes have no value and why, and whose cost is unknown or too low."""
    parts = [*_uncovered(rows), *_failed(rows), *_unpriced(rows), *_undercounted(rows)]
    return f"{first_upper('; '.join(parts))}." if parts else None


SENTENCES = (best_method, not_told_apart, cost_of_a_step, best_damping, layers_with_the_error, missing)


def _scale(rows: pd.DataFrame) -> str:
    """The gap in words, with the Fisher on which it stands."""
    references = texts(rows[rows["metric"] == "direction.gap_closed"], "method")
    return SCALE.format("Monte-Carlo" if references.str.startswith("Monte-Carlo").any() else "exact")


def _second_batch(rows: pd.DataFrame) -> str:
    """On which batch dampings were judged, as the rows say: ``, by the decrease of the loss on the batch itself``."""
    chosen = rows[(rows["metric"] == "damping.best") & (rows["scope"] == "network") & (rows["status"] == Status.OK)]
    found = texts(chosen, "method").str.extract(r"(, by the decrease of the loss on .*)$")[0].dropna()
    return "" if found.empty else str(found.iloc[0])


def _leaders(rivals: Sequence[Method], budget: Budget) -> list[Method]:
    """The winner within the budget and the winner at any cost: one method, if they are the same."""
    within, best = winners(rivals, budget)
    distinct = {method.label: method for method in (within, best) if method is not None}
    return list(distinct.values())


def _tied(leader: Method, rivals: Sequence[Method], budget: Budget) -> list[Method]:
    """The methods that cannot be told apart from a winner, among those that it won against."""
    against = rivals if leader is rivals[0] else [method for method in rivals if method.fits(budget)]
    others = [method for method in against if method.label != leader.label]
    return [method for method in [*others, gradient_like(leader)] if are_tied(leader, method)]


def _closed(method: Method) -> str:
    return ranged(list(method.gaps.values()), method.gap)


def _with_gap(method: Method) -> str:
    return f"{method.label} ({_closed(method)})"


def _most(method: Method, budget: Budget, of: str = "") -> str:
    price = _price(method, budget)
    return f"at any cost, {method.label} closes most{of}: {_closed(method)}{f', at {price}' if price else ''}"


def _nearest(method: Method) -> str:
    return f"the best, {method.label}, closes {_closed(method)}"


def _price(method: Method, budget: Budget) -> str:
    """``1.98 gradients and 2.1 times the memory``; empty if nothing was measured."""
    gradients = method.gradients(budget.refresh)
    parts = [] if math.isnan(gradients) else [f"{in_gradients(gradients)} a step"]
    parts += [] if math.isnan(method.memory) else [f"{times(method.memory)} times the memory"]
    return " and ".join(parts)


def _at_any_cost(within: Method, best: Method, rivals: Sequence[Method], budget: Budget) -> str:
    if len(rivals) == 1:
        return "no other method was compared"
    if best.label == within.label:
        return "no method closes more at any cost"
    return _most(best, budget)


def _none_fits(rivals: Sequence[Method], budget: Budget) -> str:
    known = [method for method in rivals if not math.isnan(method.excess(budget))]
    if not known:
        return f"Not enough measured to say what stays within {budget}: no method has counted FLOPs and memory"
    nearest = min(known, key=lambda method: method.excess(budget))
    return f"No method stays within {budget}: the nearest, {nearest.label}, takes {_price(nearest, budget)}"


def _too_little(rows: pd.DataFrame) -> str:
    """Why nothing can be said of the methods."""
    known = methods(rows)
    if not known:
        references = list(dict.fromkeys(labels(rows, "probe")))
        return f"Not enough measured: {f'only references ({few(references)})' if references else 'no method'} so far."
    if any(method.gaps for method in known):
        names = [method.label for method in known if method.gaps]
        return f"Not enough measured: only the plain gradient ({listed(names)}) has a step to compare."
    reasons = [one_line(reason, LONGEST) for label, reason in lacking(rows).items()]
    why = f" ({reasons[0]})" if reasons else ", because steps were not measured (meter direction)"
    return f"Not enough measured: no method has a share of {_scale(rows)}{why}."


def _plateau(method: Method) -> str:
    parts = [] if LEAST_DAMPING < method.damping < MOST_DAMPING else ["the end of the grid"]
    parts += [] if math.isnan(method.plateau) else [f"plateau of {times(method.plateau)} decades"]
    return f" ({', '.join(parts)})" if parts else ""


def _dampings(rows: pd.DataFrame) -> list[str]:
    """The dampings of the exact steps."""
    chosen = texts(rows[rows["metric"] == "direction.gap_closed"], "method")
    return list(chosen.str.extract(r"\bdamping ([^,]+)")[0].dropna().unique())


def _over_time(label: str, cost: Cost) -> str:
    """The gradients of a step with everything refreshed, and when they fall below those of a step with little more."""
    interval, little = cost.negligible_from(), times(1 + NEGLIGIBLE)
    text = f"a step with {label} costs {in_gradients(cost.at(1))}"
    if interval == 1:
        return text
    text += " if its statistics are refreshed at every step"
    if interval is not None:
        return f"{text}, and less than {little} if every {interval:,} steps or more rarely"
    what = "its moments and its preconditioning add" if cost.moments else "preconditioning alone adds"
    return f"{text}, and never less than {little}, because {what} {times(cost.of_each_step)}"


def _error_shares(rows: pd.DataFrame, label: str) -> pd.Series:
    """The share of every layer in the squared error of a probe, the largest first; means over seeds."""
    chosen = rows[(rows["metric"] == "error.share") & (rows["status"] == Status.OK) & (labels(rows, "probe") == label)]
    return (
        chosen["value"].groupby(texts(chosen, "scope"), sort=False).mean().sort_values(ascending=False, kind="stable")
    )


def _carriers(label: str, shares: pd.Series) -> str:
    enough = min(int((shares.cumsum() < MOST_ERROR).sum()) + 1, MOST_LAYERS)
    (first, share), *others = shares.head(enough).items()
    parts = [f"{percent(share)} lies in layer {first}", *(f"{percent(share)} in {layer}" for layer, share in others)]
    whole = f"the squared distance between the matrix of {label} and the exact Fisher of the {len(shares)} layers"
    return f"Of {whole}, {listed(parts)}."


def _uncovered(rows: pd.DataFrame) -> list[str]:
    """The share of the parameters that is left out, with the reason."""
    covered = rows[(rows["metric"] == "coverage.parameters") & (rows["status"] == Status.OK)]
    notes = [one_line(note, LONGEST) for note in dict.fromkeys(texts(covered, "reason")) if note]
    why = f": {'; '.join(notes)}" if notes else ""
    least = covered["value"].min()
    if not least < 1:
        return notes
    share = percent(1 - least) if least < 1 - LEAST_SHARE else f"less than {percent(LEAST_SHARE)}"
    return [f"{share} of the trainable parameters are not covered{why}"]


def _failed(rows: pd.DataFrame) -> list[str]:
    """Probes without a value, grouped by reason."""
    reasons = lacking(rows)
    if compared(rows):
        unknown = {method.label: "no step was measured" for method in methods(rows) if not method.gaps}
        reasons = {**unknown, **reasons}
    by_reason: dict[str, list[str]] = {}
    for label, reason in reasons.items():
        by_reason.setdefault(one_line(reason, LONGEST), []).append(label)
    return [f"no value of {listed(names)} ({reason})" for reason, names in by_reason.items()]


def _unpriced(rows: pd.DataFrame) -> list[str]:
    """Methods of which FLOPs or memory were not measured, unless no method has them."""
    rivals = compared(rows)
    names = [method.label for method in rivals if not method.has_price]
    return [f"the cost of {few(names)} was not measured"] if 0 < len(names) < len(rivals) else []


def _undercounted(rows: pd.DataFrame) -> list[str]:
    """Methods that ran operations without a formula, whose FLOPs are not counted."""
    uncounted = rows[(rows["metric"] == "flops.uncounted_ops") & (rows["scope"] == "step") & (rows["value"] > 0)]
    names = [label for label in labels(uncounted, "probe").unique() if is_method(label)]
    operations = dict.fromkeys(" ".join(texts(uncounted, "reason")).split())
    why = (
        f"because operations lack a formula: {few(list(operations))}" if operations else "as operations lack a formula"
    )
    return [f"the FLOPs of {few(names)} are too low, {why}"] if names else []
