"""The verb ``cost``: what methods cost on a network, from the shapes of its layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from curvbench.cli.verbs import option, users_fault
from curvbench.cli.verbs.measure import size

if TYPE_CHECKING:
    from curvbench.prediction import Shapes


@click.command()
@click.argument("program", metavar="[FILE.py:NAME]", required=False)
@option("--shapes", metavar="FILE|NAME", help="TOML file of layer shapes, or a shipped network: gpt2, resnet50, ...")
@option("-p", "probes", multiple=True, metavar="PROBE[key=value,...]", help="Method instead of all; repeatable.")
@option("--refresh", type=int, default=1, metavar="STEPS", help="Steps from one factorization to the next.")
@option("--samples", type=int, metavar="N", help="Samples of a batch instead of the file's.")
@option("--dtype", type=click.Choice(["bfloat16", "float32", "float64"]), default="float32", help="Dtype of weights.")
@option("--budget", metavar="SIZE", help="Memory that there is, as 24GB: says which methods fit.")
@option(
    "--fisher-type",
    type=click.Choice(["type-2", "mc", "empirical"]),
    help="Fisher type of all methods that have a choice; language models need mc or empirical.",
)
@option("--save", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write the shapes to a file.")
@option("--json", "as_json", is_flag=True, help="As JSON.")
def cost(
    program: str | None,
    shapes: str | None,
    probes: tuple[str, ...],
    refresh: int,
    samples: int | None,
    dtype: str,
    budget: str | None,
    fisher_type: str | None,
    save: Path | None,
    as_json: bool,
) -> None:
    """Show what methods cost: FLOPs, the passes included, and bytes.

    The numbers follow from the shapes of the layers, which a TOML file lists, so that no model needs to be in memory.
    Or NAME in FILE.py gives a model and a batch, as for `curvbench measure`.
    """
    from curvbench import prediction

    with users_fault():
        network = _network(program, shapes)
        costs = prediction.cost(
            network,
            probes or None,
            samples=samples,
            refresh=refresh,
            dtype=dtype,
            budget=size(budget) if budget else None,
            fisher_type=fisher_type,
        )
        if save is not None:
            save.write_text(prediction.dumped(network), encoding="utf-8")
    click.echo(json.dumps(costs.record(), indent=1) if as_json else str(costs))


def _network(program: str | None, shapes: str | None) -> Shapes:
    """The shapes that a file lists, or those of a model in a program."""
    from curvbench import prediction

    if program is not None and shapes is None:
        return _of_program(program)
    if shapes is not None and program is None:
        return prediction.shapes(shapes)
    known = ", ".join(prediction.shipped())
    raise ValueError(f"give one network: --shapes FILE, --shapes NAME (shipped: {known}), or FILE.py:NAME")


def _of_program(program: str) -> Shapes:
    """The shapes of the model that a name in a file gives, on its first batch."""
    import torch

    from curvbench import prediction, training
    from curvbench.cells.given import Given
    from curvbench.comparison import program as programs
    from curvbench.instance import Instance

    problem = programs.problem_of(program)
    if isinstance(problem, Given):
        held = problem.held
        return prediction.shapes(Instance(held.model, *held.batches[0], held.loss, **held.options))
    torch.manual_seed(0)
    inputs, targets = training.batch(problem, problem.data(None), 0)
    return prediction.shapes(Instance(problem.model(), inputs, targets, problem.loss))
