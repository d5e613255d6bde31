"""Time and memory of our phases over those of the peers, taken in turn in one process; prints Markdown.

    OMP_NUM_THREADS=1 python suites/peers/cost.py --dataset cifar10 --data DIR

Every peer is called in its own form: vectors are converted before the clock starts. CPU seconds stand beside wall
seconds, for on a loaded machine only they compare.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

from curvbench import Instance, exact_fisher, probe, problem, registry, training
from curvbench.meters.clock import ratios, take_turns
from curvbench.meters.memory import peak_memory

peers: Any = registry.load_file(Path(__file__).with_name("probes.py"))
Phases = Mapping[str, Mapping[str, Callable[[], object]]]
OURS = "curvbench"
HEADER = """\
ResNet-20 on {dataset}, {samples} samples, float32, {threads} thread(s) on {processor}, torch {torch}, load {load:.1f},
at most {turns} turns. Seconds are CPU seconds, medians; a ratio is ours over theirs of the same turn, CPU (wall).
"""


def statistics(instance: Instance) -> Phases:
    """The factors of K-FAC, per Fisher type and approximation; of EKFAC with its eigenbases."""
    table: dict[str, dict[str, Callable[[], object]]] = {}
    for kind in ("type-2", "mc", "empirical"):
        for approx in ("expand", "reduce"):
            table[f"K-FAC statistics, {kind}, {approx}"] = {
                OURS: _update(probe("kfac", fisher_type=kind, kfac_approx=approx), instance),
                "curvlinops": _update(peers.CurvlinopsKfac(kind, kfac_approx=approx), instance),
            }
        table[f"K-FAC statistics, {kind}, expand"]["NNGeometry"] = _update(peers.NngeometryKfac(kind), instance)
    table["EKFAC statistics, mc"] = {
        OURS: _update(probe("ekfac", fisher_type="mc"), instance),
        "curvlinops": _update(peers.CurvlinopsEkfac("mc"), instance),
        "NNGeometry": _update(peers.NngeometryEkfac("mc"), instance),
    }
    return table


def inverses(instance: Instance) -> Phases:
    """The inverse of K-FAC's factors and its product with the gradient, per damping rule."""
    gradient = instance.gradient()
    table: dict[str, dict[str, Callable[[], object]]] = {}
    for rule in ("exact", "pi"):
        own, other = probe("kfac", fisher_type="mc", damping_rule=rule), peers.CurvlinopsKfac("mc", damping_rule=rule)
        mine, theirs = own.fit(instance), other.fit(instance)
        table[f"K-FAC inverse, {rule}"] = {OURS: _call(own.refresh, mine), "curvlinops": _call(other.refresh, theirs)}
        mine, theirs = own.refresh(mine), other.refresh(theirs)
        table[f"K-FAC precondition, {rule}"] = {
            OURS: _call(own.precondition, mine, gradient),
            "curvlinops": _call(theirs.inverse.__matmul__, theirs.as_list(gradient)),
        }
    third = peers.NngeometryKfac("mc")
    state = third.fit(instance)
    table["K-FAC inverse, pi"]["NNGeometry"] = _call(third.refresh, state)
    state = third.refresh(state)
    table["K-FAC precondition, pi"]["NNGeometry"] = _call(state.inverse.mv, peers.as_pvector(state, gradient))
    return table


def products(instance: Instance) -> Phases:
    """One product with the exact matrix: by passes through the network, as theirs, and from stored columns."""
    gradient = instance.gradient()
    fisher = exact_fisher(instance, precision="native")
    ggn = peers.CurvlinopsGgn().fit(instance)
    theirs = _call(ggn.peer.__matmul__, ggn.as_list(gradient))
    return {
        "Fisher product": {OURS: _call(instance.fisher_product, gradient), "curvlinops": theirs},
        "Fisher product, columns stored": {OURS: _call(fisher.matvec, gradient), "curvlinops": theirs},
    }


def _update(component: Any, instance: Instance) -> Callable[[], object]:
    return _call(component.update, component.init(instance), instance)


def _call(function: Callable[..., object], *arguments: Any) -> Callable[[], object]:
    return lambda: function(*arguments)


def rows(table: Phases, turns: int, budget_s: float) -> Iterator[str]:
    """Markdown, a row per phase and peer: seconds, ratio of CPU and wall seconds, ratio of peak bytes."""
    for phase, functions in table.items():
        wall, cpu = take_turns(functions, "cpu", turns, budget_s)
        peak = {name: peak_memory(function, "cpu")[0] for name, function in functions.items()}
        for name in list(functions)[1:]:
            ratio = [median(ratios(samples[OURS], samples[name])) for samples in (cpu, wall)]
            yield (
                f"| {phase} | {name} | {median(cpu[OURS]):.3g} | {median(cpu[name]):.3g} "
                f"| {ratio[0]:.2f} ({ratio[1]:.2f}) | {peak[OURS] / peak[name]:.2f} |"
            )


def main() -> int:
    """Print the tables; 2 where a peer or the data is not there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds per phase after which no turn starts")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        for name in peers.DISTRIBUTIONS:
            peers.installed(name)
        chosen = problem("resnet", dataset=given.dataset, samples=given.samples)
        batch = training.batch(chosen, chosen.data(given.data), 0, "cpu", torch.float32)
    except Exception as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    instance = Instance(chosen.model().eval(), *batch, parameters="weights")  # as the peers cover it
    facts = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
    print(HEADER.format(**vars(given), threads=torch.get_num_threads(), load=os.getloadavg()[0], **facts))
    print("| phase | peer | ours, s | theirs, s | ratio of seconds | ratio of peak bytes |")
    print("|---|---|---|---|---|---|")
    for make in (statistics, inverses, products):
        for line in rows(make(instance), given.turns, given.budget):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
