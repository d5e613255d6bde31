"""Whether a method here is the method of public code, and to which digit: step sequences side by side, as Markdown.

    python scripts/agree.py                # optimizers of installed packages
    python scripts/agree.py CHECKOUT       # and those of files in a checkout of the authors' code
    python scripts/agree.py CHECKOUT --pair 'adam[beta2=0.99]' 'optim/adam.py:Adam[betas=0.9/0.99]'

Both sides take the same random gradients at fixed parameters of one square layer, in float64 if the public code runs in
float64. The gradients have full rank, because the null space of a first gradient leaves a method with eigenbases free.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from curvbench import Instance
from curvbench.parts.torch_optim import TorchOptim
from curvbench.registry import OPTIMIZER, parse_probe
from curvbench.spec import Probe

ORDER, SAMPLES = 6, 24  # of the layer, and of every batch


class Pair(NamedTuple):
    """A method here and in public: ``probe`` as ``-p`` takes it, ``public`` as MODULE.NAME[...] or FILE.py:NAME[...].

    ``note``: the convention in which both agree, for the report.
    """

    probe: str
    public: str
    note: str = ""


PAIRS = (  # a new pair is one entry; the path of a file is relative to the checkout
    Pair("adam", "torch.optim.Adam"),
    Pair("adam[beta1=0.5,beta2=0.9]", "torch.optim.Adam[betas=0.5/0.9]"),
    Pair("adamw[weight_decay=0.0]", "torch.optim.AdamW", "weight decay is off on both sides"),
    Pair("sgdm", "torch.optim.SGD[momentum=0.9]"),
    Pair("sgdm[momentum=0.5]", "torch.optim.SGD[momentum=0.5]"),
    Pair("shampoo[epsilon=1e-06]", "pytorch_optimizer.Shampoo[matrix_eps=1e-06]", "the paper's exponent, -1/4"),
    Pair(
        "shampoo[decay=0.9,epsilon=1e-12]",
        f"distributed_shampoo.DistributedShampoo[betas=0.0/0.9,max_preconditioner_dim={ORDER}]",
        "Meta's code, with PYTHONPATH at a checkout: roots are float32, and the limit keeps the matrix whole",
    ),
    Pair("soap", "pytorch_optimizer.SOAP[weight_decay=0.0]", "later bases are made in float32 there"),
    Pair("muon[polar_by=newton-schulz]", "torch.optim.Muon[weight_decay=0.0]", "rounds in bfloat16 there"),
    Pair("psgd", "pytorch_optimizer.Kron[weight_decay=0.0]", "both draw at random and whiten other vectors: no digits"),
)


class Agreement(NamedTuple):
    """The relative distance of every step of the probe from the public one, and the dtype of the public steps."""

    distances: list[float]
    dtype: torch.dtype

    @property
    def digits(self) -> int:
        """The decimal digits that all steps have in common."""
        worst = max(self.distances)
        return 0 if not worst < 1 else 16 if worst == 0 else min(16, math.floor(-math.log10(worst)))


def batches(count: int) -> Iterator[Instance]:
    """Batches of one layer with random inputs and targets, so that its gradients are random and of full rank."""
    draws = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(ORDER, ORDER, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(ORDER, ORDER, generator=draws, dtype=torch.float64))
    for _ in range(count):
        inputs, targets = torch.randn(2, SAMPLES, ORDER, generator=draws, dtype=torch.float64)
        yield Instance(layer, inputs, targets, "gaussian")


def steps(probe: Probe, sequence: Sequence[Instance]) -> list[Tensor]:
    """The probe's step for every batch, whose gradient its statistics have taken in before."""
    state, taken = probe.init(sequence[0]), []
    for batch in sequence:
        state = probe.update(state, batch)
        taken.append(probe.precondition(probe.refresh(state), batch.gradient()).double())
    return taken


def agree(probe: Probe, public: TorchOptim, count: int) -> Agreement:
    """Both sides on ``count`` batches; a public step that is zero, such as SOAP's first, is left out."""
    pairs = zip(*(steps(side, list(batches(count))) for side in (probe, public)), strict=True)
    distances = [float((own - other).norm() / other.norm()) for own, other in pairs if other.any()]
    return Agreement(distances or [math.inf], public.dtype)


def public_side(text: str, root: Path | None) -> TorchOptim | str:
    """The public optimizer, or why there is none."""
    name = text.partition("[")[0]
    if ":" in name:
        if root is None or not (root / name.partition(":")[0]).is_file():
            return f"no {name.partition(':')[0]} in the checkout" if root else "no checkout was given"
        text = f"{root / text}"
    try:
        side = parse_probe(text if ":" in name else f"{OPTIMIZER}{text}")
    except ValueError as error:
        return str(error)
    assert isinstance(side, TorchOptim)
    (batch,) = batches(1)
    return side.unsupported(batch) or side


def line(pair: Pair, root: Path | None, count: int) -> str:
    """A row of the report."""
    public = public_side(pair.public, root)
    try:
        probe = parse_probe(pair.probe)
    except ValueError as error:
        public = str(error)
    if isinstance(public, str):
        return f"| `{pair.probe}` | `{pair.public}` | | | | not compared: {public} |"
    found = agree(probe, public, count)
    first, worst = found.distances[0], max(found.distances)
    dtype = str(found.dtype).removeprefix("torch.")
    return f"| `{pair.probe}` | `{pair.public}` | {dtype} | {first:.1e} | {worst:.1e} | {found.digits}{_note(pair)} |"


def _note(pair: Pair) -> str:
    return f" ({pair.note})" if pair.note else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkout", nargs="?", type=Path, help="a checkout of the authors' code")
    parser.add_argument("--pair", nargs=2, action="append", metavar=("PROBE", "PUBLIC"), help="a pair in place of all")
    parser.add_argument("--steps", type=int, default=20, help="steps to compare (20)")
    options = parser.parse_args(arguments)
    if options.checkout is not None and not options.checkout.is_dir():
        print(f"error: no folder {str(options.checkout)!r}", file=sys.stderr)
        return 2
    pairs = [Pair(*pair) for pair in options.pair] if options.pair else PAIRS
    print(f"Steps of {options.steps} random gradients of full rank, torch {torch.__version__}: relative distances\n")
    print("| probe | public | dtype | first step | worst step | digits in common |")
    print("|---|---|---|--:|--:|---|")
    for pair in pairs:
        print(line(pair, options.checkout, options.steps), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
