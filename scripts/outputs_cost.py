"""What many outputs cost: CPU seconds of one thread over those of one matrix product; prints Markdown.

    python scripts/outputs_cost.py

Statistics of a network with 1,000 outputs stand over the product V V^T of all its columns V at the outputs, which is
made before the clock starts. All are taken in turn, and medians are printed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

import curvbench as cb
from curvbench.meters.clock import take_turns
from curvbench.meters.memory import peak_memory

PROBES = ("kfac", "ekfac", "diag", "tkfac", "thor")
OUTPUTS, MOST_OUTPUTS = 1000, 3072
CPU = torch.device("cpu")
NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "one layer": lambda outputs: nn.Linear(128, outputs),
    "two layers": lambda outputs: nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, outputs)),
}


def instance(network: str, samples: int, outputs: int = OUTPUTS) -> cb.Instance:
    """A network on random data."""
    torch.manual_seed(0)
    model = NETWORKS[network](outputs)
    return cb.Instance(model, torch.randn(samples, 128), torch.zeros(samples, dtype=torch.int64))


def all_columns(batch: cb.Instance) -> Tensor:
    """The columns of all samples at the outputs, (C, (C - 1) N)."""
    return torch.stack(list(batch.cotangents(batch.outputs(), "type-2"))).flatten(0, 1).T.contiguous()


def statistics(turns: int) -> Iterator[str]:
    """A line per network and number of samples: each probe's seconds over those of one product."""
    yield "| network, samples | product, ms | eigh of C, ms | " + " | ".join(PROBES) + " |"
    yield "|---" * (3 + len(PROBES)) + "|"
    for network in NETWORKS:
        for samples in (1, 8):
            batch = instance(network, samples)
            V, B = all_columns(batch), torch.randn(OUTPUTS, OUTPUTS)
            calls = {"product": partial(torch.matmul, V, V.T), "eigh": partial(torch.linalg.eigh, B + B.T)}
            calls |= {name: partial(cb.probe(name).update, None, batch) for name in PROBES}
            cpu = {name: median(each) for name, each in take_turns(calls, CPU, turns, 600.0).cpu.items()}
            ratios = " | ".join(f"{cpu[name] / cpu['product']:.2f}" for name in PROBES)
            yield f"| {network}, {samples} | {1e3 * cpu['product']:.1f} | {1e3 * cpu['eigh']:.1f} | {ratios} |"


def memory() -> str:
    """The live bytes of the exact diagonal of a network with 3,072 outputs."""
    batch = instance("two layers", 8, MOST_OUTPUTS)
    peak, _ = peak_memory(lambda: cb.probe("diag").update(None, batch), CPU)
    return f"diag, {MOST_OUTPUTS:,} outputs, two layers, 8 samples: {peak / 1e6:.0f} MB live above the start"


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{OUTPUTS:,} outputs, torch {torch.__version__}, one thread: CPU seconds over those of the product\n")
    for line in statistics(options.turns):
        print(line, flush=True)
    print()
    print(memory())
    return 0


if __name__ == "__main__":
    sys.exit(main())
