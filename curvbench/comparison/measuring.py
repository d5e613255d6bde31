"""One call that measures methods on a model, in this process, without touching the model."""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from curvbench import identity, registry, store
from curvbench.analysis.roles import COMPARED
from curvbench.analysis.verdict import sentences
from curvbench.cells import measure as cells
from curvbench.cells import reference
from curvbench.cells.given import Given
from curvbench.comparison.batches import batches_of
from curvbench.comparison.result import Comparison
from curvbench.engines import Event, Work
from curvbench.engines.inline import InlineEngine
from curvbench.instance import Instance
from curvbench.instance.contents import RandomStates
from curvbench.instance.inputs import SampleInputs
from curvbench.instance.likelihood import Loss
from curvbench.instance.outputs import Chooser
from curvbench.planning import plan
from curvbench.prediction import Shapes, shapes
from curvbench.prediction.pricing import NoCost, price
from curvbench.spec import DAMPING, METERS, Cell, Parameters, Preset, Probe, Problem, Suite, refuse_twice
from curvbench.words import refuse_type

BOUNDS = ("layer", "full")
SUITE = "measure"
PAUSE = 30.0  # seconds between provisional verdicts
Probes = Literal["all"] | Iterable[str | Probe] | None


def measure(
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    *,
    loss: Loss = "cross_entropy",
    probes: Probes = None,
    damping: float | None = None,
    budget: float | None = None,
    memory: float | None = None,
    parameters: Parameters = "all",
    outputs: Chooser | None = None,
    sample_inputs: SampleInputs | None = None,
    mc_samples: int = 0,
    progress: bool = True,
) -> Comparison:
    """Measure methods on a model of one's own, and say what was found.

    Args:
        model: any ``nn.Module``, as ``Instance`` takes it; a copy of it is measured, in evaluation mode.
        inputs: what the model takes, as ``Instance`` takes it; or a loader of (inputs, targets) or of mappings with
            ``labels``, of which the first three batches are measured.
        targets: the targets of these inputs; None with a loader.
        loss: as ``Instance`` takes it.
        probes: methods by name, with hyperparameters as ``kfac[damping_rule=pi]``, or ``Probe`` objects; ``all`` for
            every method. None means ``sgdm``, ``adam``, ``muon``, ``soap``, ``shampoo``, ``kfac``, ``ekfac`` and
            ``lngd``, and the references ``layer`` and ``full``, which are exact in every layer and altogether.
        damping: the damping of the steps, added to the diagonal of the mean Fisher. None means 1e-3.
        budget: seconds after which no method starts. None means no limit.
        memory: bytes; a method that keeps more between steps, as ``cb.cost`` says, is left out. None means no limit.
        parameters: ``all`` trainable parameters, or the ``weights`` of linear layers and convolutions with biases.
        outputs: a function from what the model returns to the tensor of its outputs.
        sample_inputs: the dimension of the samples by the name of an input.
        mc_samples: draws per sample of a Monte-Carlo Fisher in place of the exact one, which language models need. The
            methods then draw labels too unless their ``fisher_type`` is given: once, and references as often.
        progress: whether lines about the progress are printed, to standard error.

    Raises:
        ValueError: the model, the batch or a method cannot be used; the text is one line.
        MemoryError: the exact Fisher does not fit; the text says what would.
    """
    refuse_type("model", model, nn.Module, "give the module itself")
    for name, value in {"damping": damping, "budget": budget, "memory": memory}.items():
        _refuse_number(name, value)
    batches = batches_of(model, inputs, targets)
    options: dict[str, Any] = {"outputs": outputs, "sample_inputs": sample_inputs}
    problem = Given.of(model, batches, loss, mc_samples=mc_samples, options=options)
    chosen = chosen_probes(probes, mc_samples)
    say = _say if progress else _silent
    with _restored(), tempfile.TemporaryDirectory(prefix="curvbench-") as folder:
        instance = Instance(problem.held.model, *batches[0], loss, parameters=parameters, **options)
        fitting, left_out = fits(chosen, instance, memory)
        made = cells_of(problem, fitting, range(len(batches)), instance, damping, parameters)
        reference.refuse_oversized(instance, made[0])
        say(f"{instance}: {len(fitting)} methods, {_counted(batches)}")
        run = _run(made, Path(folder), budget, say)
        return Comparison.of(run, [*left_out, *_not_run(made, run)])


def _refuse_number(name: str, value: object) -> None:
    """Raise ValueError for a setting that is no number of at least 0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and value >= 0):  # type: ignore[operator]
        raise ValueError(f"{name} must be a number of at least 0, got {value!r}")


def chosen_probes(probes: Probes, mc_samples: int = 0) -> list[Probe]:
    """The methods that are asked for; with ``mc_samples`` draws those without a ``fisher_type`` draw labels too.

    Raises:
        ValueError: a method is unknown, or none is asked for.
    """
    if probes is None or probes == "all":
        found = registry.every_probe() if probes else [registry.probe(name) for name in (*COMPARED, *BOUNDS)]
        return [_drawing(probe, mc_samples) for probe in found] if mc_samples else found
    asked = [probes] if isinstance(probes, str) else list(probes)
    chosen = [_parsed(probe, mc_samples) if isinstance(probe, str) else probe for probe in asked]
    for probe in chosen:
        refuse_type("probe", probe, Probe, "give a name, or curvbench.probe(name)")
    if not chosen:
        raise ValueError("probes is empty: name at least one method, or leave it out")
    refuse_twice("probes", chosen)
    return chosen


def _parsed(text: str, mc_samples: int) -> Probe:
    probe = registry.parse_probe(text)
    return _drawing(probe, mc_samples) if mc_samples and "fisher_type" not in text else probe


def _drawing(probe: Probe, mc_samples: int) -> Probe:
    """The probe with drawn labels in place of a column for every class: one draw, and as many as asked in a reference.

    A column for every word of a vocabulary would take hundreds of passes.
    """
    if probe.fisher_type != "type-2" or "mc_samples" not in probe.hyperparameters:
        return probe
    draws = 1 if probe.role == "method" else mc_samples
    return replace(probe, fisher_type="mc", mc_samples=draws)  # type: ignore[type-var]


def fits(probes: Sequence[Probe], instance: Instance, memory: float | None) -> tuple[list[Probe], list[str]]:
    """The methods whose predicted state is at most ``memory`` bytes, and a line for each of the others."""
    if memory is None:
        return list(probes), []
    fitting, lines = [], []
    network = shapes(instance)
    for probe in probes:
        held = _state(probe, network, instance)
        if held <= memory:
            fitting.append(probe)
        else:
            lines.append(f"{probe.label} was left out: it needs {_bytes(held)}, more than {_bytes(memory)}")
    if not fitting:
        raise ValueError(f"no method needs at most {_bytes(memory)}: {lines[0]}")
    return fitting, lines


def _state(probe: Probe, network: Shapes, instance: Instance) -> float:
    """Bytes that a method keeps between steps; 0 if nobody has said what it costs."""
    try:
        return price(probe, network, dtype=str(instance.dtype).removeprefix("torch.")).state
    except NoCost:
        return 0.0


def cells_of(
    problem: Given,
    probes: Sequence[Probe],
    seeds: Iterable[int],
    instance: Instance,
    damping: float | None = None,
    parameters: Parameters = "all",
) -> list[Cell]:
    """A cell per batch and method, batch by batch."""
    return [
        Cell(
            SUITE,
            problem,
            probe,
            seed,
            device=str(instance.device),
            dtype=str(instance.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
            meters=(*METERS, "damping"),
            precision="mixed" if instance.has_float64_values() else "native",
            damping=DAMPING if damping is None else damping,
            parameters=parameters,
        )
        for seed in seeds
        for probe in probes
    ]


def suite_of(problem: Problem, probes: Probes, memory: float | None, parameters: Parameters) -> Suite:
    """The suite of one problem, for ``curvbench measure``; raises ValueError as ``measure`` does."""
    chosen = chosen_probes(probes, problem.mc_samples)
    settings: dict[str, Any] = {"parameters": parameters, "meters": (*METERS, "damping")}
    if isinstance(problem, Given):
        held = problem.held
        instance = Instance(held.model, *held.batches[0], held.loss, parameters=parameters, **held.options)
        (first,) = cells_of(problem, chosen[:1], [0], instance, None, parameters)
        reference.refuse_oversized(instance, first)
        chosen, left_out = fits(chosen, instance, memory)
        for line in left_out:
            _say(line)
        settings |= {
            "seeds": range(len(held.batches)),
            "dtype": str(instance.dtype).removeprefix("torch."),
            "precision": "mixed" if instance.has_float64_values() else "native",
        }
    return Suite(f"Methods on {problem.label}", {"default": Preset([problem], chosen, **settings)})


def _run(made: Sequence[Cell], folder: Path, budget: float | None, say: Callable[[str], None]) -> Path:
    """Measure the cells here, and return the folder of the run."""
    planned = plan.make(made, folder, identity.environment(made[0].device))
    run = planned.begin("curvbench.measure(...)", Path(__file__))
    work = Work(
        dict(planned.cells), run, planned.environment, cells.reference_identity, budget=budget, seen=planned.seen
    )
    InlineEngine().run(work, Progress(len(made), run, say))
    return run


class Progress:
    """Says how each method has ended, as soon as it has, and every ``PAUSE`` seconds what the rows say so far."""

    def __init__(self, total: int, run: Path, say: Callable[[str], None]) -> None:
        self._total, self._run, self._say = total, run, say
        self._count, self._last = 0, time.monotonic()

    def __call__(self, event: Event) -> None:
        if event.kind == "reported" and event.task.kind == "reference":
            self._say(event.text)
        if event.kind != "finished" or event.task.kind != "cell":
            return
        self._count += 1
        self._say(f"{self._count}/{self._total} {event.task.cell.probe.label}: {_found(event)}")
        if self._count < self._total and time.monotonic() > self._last + PAUSE:
            self._last = time.monotonic()
            self._say(sentences(store.load(self._run), provisional=True)[0])


def _found(event: Event) -> str:
    """What a cell has found, in a few words."""
    if event.outcome is not None and event.outcome.reason:
        return f"{event.outcome.status}, {event.outcome.reason}"
    frame = store.load(event.task.fragment, ["metric", "scope", "value"])
    wanted = {"gap closed": ("direction.gap_closed", "network"), "x SGD in FLOPs": ("flops.ratio", "step")}
    found = {}
    for words, (metric, scope) in wanted.items():
        values = frame[(frame["metric"] == metric) & (frame["scope"] == scope)]["value"].dropna()
        if len(values):
            found[words] = f"{values.iloc[0]:.3g}"
    parts = [f"gap closed {found['gap closed']}"] if "gap closed" in found else []
    parts += [f"{found['x SGD in FLOPs']} x SGD in FLOPs"] if "x SGD in FLOPs" in found else []
    return ", ".join([*parts, f"{event.seconds:.1f} s"])


def _not_run(made: Sequence[Cell], run: Path) -> list[str]:
    """A line on the methods that the budget did not let begin."""
    begun = set(store.load(run, ["cell_id", "probe", "probe_args", "seed"])["cell_id"])
    missing = [cell for cell in store.read_run(run).get("cells", []) if cell["id"] not in begun]
    labels = dict.fromkeys(f"{c['probe']}[{c['probe_args']}]" if c["probe_args"] else c["probe"] for c in missing)
    if not begun:
        raise ValueError("the budget was spent before any method began: give more seconds")
    return [f"not measured, because the budget was spent: {', '.join(labels)}"] if missing else []


@contextmanager
def _restored() -> Iterator[None]:
    """Random states, the number of threads and the garbage collector are afterwards as they were; nothing is kept."""
    threads, states = torch.get_num_threads(), RandomStates.now(torch.device("cpu"))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        states.restore(torch.device("cpu"))
        gc.unfreeze()
        reference.keep(Path(), None)


def _counted(batches: Sequence[Any]) -> str:
    return "one batch" if len(batches) == 1 else f"the first {len(batches)} batches of the loader"


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def _say(text: str) -> None:
    print(f"curvbench: {text}", file=sys.stderr, flush=True)


def _silent(text: str) -> None:
    pass
