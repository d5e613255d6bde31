"""What many outputs cost: CPU seconds of one thread over those of one matrix product; prints Markdown.

    python scripts/outputs_cost.py

Statistics of a network with 1,000 outputs stand over the product V V^T of all its columns V at the outputs, which is
made before the clock starts. All are taken in turn, and medians are printed. Cells of a network with few parameters and
many columns follow, with `pip install -e '.[hf]'`, and the exact Fisher of language models with many words, each
in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

import curvbench as cb
from curvbench import identity
from curvbench.cells.measure import measure, prepare
from curvbench.fisher import compressed_fisher
from curvbench.meters.clock import take_turns
from curvbench.meters.exact import matmul_peak
from curvbench.meters.memory import peak_memory
from curvbench.spec import Cell

PROBES = ("kfac", "ekfac", "diag", "tkfac", "thor")
OUTPUTS, MOST_OUTPUTS = 1000, 3072
VOCABULARIES = (5_000, 50_000)
CELLS = ("identity", "diag", "kfac")
LLAMA = {
    "architecture": "LlamaForCausalLM",
    "config": "hidden_size=8 intermediate_size=16 num_hidden_layers=2 num_attention_heads=2 max_position_embeddings=16",
    "vocabulary": 30,
    "samples": 16,
}
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


def cells() -> Iterator[str]:
    """CPU seconds of the reference and of the cells of a Llama with 3,712 columns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for probe in CELLS:
            cell = Cell("outputs", cb.problem("hf", **LLAMA), cb.probe(probe), 0)
            start = time.process_time()
            prepare(cell, folder, None, _silent)
            middle = time.process_time()
            measure(cell, folder, None, _silent)
            seconds = time.process_time() - middle
            made = f", after {middle - start:.2f} s of the reference" if probe == CELLS[0] else ""
            yield f"cell of {probe}, few parameters and 3,712 columns: {seconds:.2f} s{made}"


class Language(nn.Module):
    """A residual block of width 32 on tokens that see those before them."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words, self.wide, self.narrow = nn.Embedding(words, 32), nn.Linear(32, 128), nn.Linear(128, 32)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, words)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, T) to logits (N, T, C)."""
        hidden = self.words(tokens).cumsum(1) / 16
        logits: Tensor = self.head(self.norm(hidden + self.narrow(torch.relu(self.wide(hidden)))))
        return logits


def vocabulary(words: int) -> str:
    """Norm, trace and layers of the exact Fisher of 4 samples of 16 tokens, and how the form in all columns refuses."""
    torch.manual_seed(0)
    tokens, targets = torch.randint(words, (2, 4, 16))
    batch = cb.Instance(Language(words), tokens, targets)
    start = time.perf_counter()
    try:
        cb.exact_fisher(batch).gram()
    except MemoryError as error:
        refusal = f"all columns are refused in {time.perf_counter() - start:.2f} s ({error})"
    else:
        refusal = "all columns fit"
    start = time.process_time()
    fisher = compressed_fisher(batch)
    for part in (fisher, *(fisher.layer(layer.name) for layer in fisher.layers)):
        part.trace()
        part.frobenius_norm()
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return f"{words:,} words: {seconds:.1f} s, {peak / 1e9:.2f} GB for the whole process; {refusal}"


def _silent(text: str) -> None:
    """A report that nobody reads."""


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--vocabulary", type=int, help="only the exact Fisher of a model with this many words")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.vocabulary:
        print(vocabulary(options.vocabulary))
        return 0
    peaks = ", ".join(f"{str(t)[6:]} {matmul_peak(t, CPU) / 1e9:.0f} GF/s" for t in (torch.float32, torch.float64))
    print(f"torch {torch.__version__}, {identity.device_name('cpu')}, one thread, peaks of a matrix product: {peaks}")
    print(f"{OUTPUTS:,} outputs: CPU seconds over those of the product\n")
    for line in statistics(options.turns):
        print(line, flush=True)
    print()
    print(memory())
    if importlib.util.find_spec("transformers"):
        for line in cells():
            print(line, flush=True)
    for words in VOCABULARIES:
        subprocess.run([sys.executable, __file__, "--vocabulary", str(words)], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
